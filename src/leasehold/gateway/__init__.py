"""The HTTP API: tenants' routes as the originals have them, operators' under ``/v1``.

``server``     Litestar on uvicorn; ``Gateway(routes=[…])`` takes every area's routes
``auth``       who asks: guards ``tenant(scope)``, ``any_tenant`` and ``operator``
``claims``     what a token permits
``jwt``        tokens: ES256K, ES256KADR36, EdDSA
``certificates`` client certificates registered on the market
``protocol``   uvicorn's protocols, with the client's certificate and a header deadline
``errors``     errors as HTTP
``manifests``  send, read, try, roll back
``leases``     status of leases and services
``streams``    websockets: logs, events, shell
``migrate``    moving host names and addresses between leases
``status``     version, address and status of the provider
``timeline``   the story of a lease
``news``       leases as they change, and which entities have news, as streams
``inside``     output with search, kept manifests, the operator's shell
``work``       index workers and the schedule
``front``      before the API: pages go to the dashboard's process
``ports``      what the gateway needs of the system that runs workloads
"""

"""System services and spells: what every node carries and keeps installed on itself.

A *package* is long-lived *services* (processes or containers one can call), *spells* (Starlark
scripts fired by triggers) and an optional initialisation. At every start the node compares the
packages it should have with what it has and changes only the difference.

Open                 for
``distro``           what a package is made of: ServiceDistro, SpellDistro, PackageDistro
``blueprint``        the hash that decides *changed or not*
``sources``          where packages come from: bundled, a directory, an OCI artifact
``tree``             the files of a package, wherever it came from
``bundled/``         the four packages shipped here: trust-graph, registry, aqua-ipfs, decider
``settings``         ``[node]`` and ``[system_services]``; ``legacy`` the old variables
``journal``          the SQLite file with every instance, alias and package of this node
``instances``        who may alias, call and remove what
``deployer``         makes all packages what they should be; order, retries, failure policies
``install``          one package: candidates, initialise, switch, settle; ``removal`` the opposite
``keeper``           the small process that starts, restarts and logs host processes
``supervisor``       the node's side of the keeper; ``containers`` services as containers
``rpc``, ``sdk``     JSON-RPC 2.0 on a Unix socket, both ends
``spells/``          triggers, the bus, the worker pool, the store of one spell
``builtins``         what scripts can call besides services
``trust``            certificate chains and what they weigh
``gate``             whom this node accepts by that
``neighbours``       other nodes, through their gateways
``log_market``       the market as the provider's own log knows it
``testing``          a real node in a test
``service``          the whole as one :class:`~leasehold.core.service.Service`
``view``             what people and their tools see of it
``ports``            what a node needs from others: containers, images, market, neighbours

Entities: ``package:<node>/<name>`` with ``package.deployed``, and ``spell:<scope>/<alias>`` with
``spell.published``: what spells found, such as the checks of each lease by the decider's workers.
"""

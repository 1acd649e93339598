"""Manifest intake: from a won lease to an accepted manifest.

Entities and events: ``deployment`` gets ``manifest.accepted`` (who sent which hash when, secrets
sealed), ``lease`` gets ``manifest.received`` once per hash and ``manifest.bid_closed`` when none
came in time, ``hostnames:all`` gets ``hostnames.changed``.

``service``     accept, validate, roll back; reconcile with the market
``manager``     one a deployment: market data, fetched once for all who wait
``intake``      the activity of a won lease: its watchdog, and serving it
``checks``      everything against a manifest, stage by stage
``crosscheck``  is it exactly what was leased?
``hostnames``   who may use which host name
``proof``       DNS records that prove who owns a host name
``bus``         events in order, a cursor a subscriber
``state``       folds of a deployment and a lease
``live``        our live leases in memory
``reconcile``   comparing the log with the market
``limits``      how often an owner may send
``ports``       what intake needs: Market, MarketWriter, Capabilities, Resolver
"""

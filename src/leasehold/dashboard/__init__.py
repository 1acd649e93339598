"""The dashboard: pages that show the provider to its operator and to tenants, live.

It is a program of its own beside the command line, above ``app`` in the layers, because like a
command it is a client: all it knows comes from the gateway's API with the visitor's credential (and
from the market's public RPC). ``gateway.front`` starts it and passes visitors on.

``server``    the application: one NiceGUI page for every path
``sessions``  who is signed in: credentials sealed with a key only the browser has
``api``       the provider as one visitor may see it
``visit``     one open tab: which page, its live sources, drawing what changed
``tree``      pages as values, and drawing the difference between two of them
``parts``     what pages are made of: tables, states, charts, timelines
``text``      numbers, bytes, times and names for people
``pages``     one module a page

A page is a class with *sources* (coroutines that keep its data current) and a *view* (a pure
function of that data). Facts are pushed: the log signals, the gateway streams, the page draws the
difference, the browser gets a message. Counters of the kernel and of the engine have no events and
are read every two seconds while somebody looks.
"""

"""
``tallybook demo``: a SaaS that is killed in front of you, and a count that stays right.

It is not the product and no part of the server imports it. `saas` is the one file that an
application would have, and is meant to be copied.

Who imports whom, from the top::

    command     the options, what is printed, the exit code
    show        one run: start everything, send traffic, drain, count
    chaos       when workers die and when the server is away
    traffic     five tenants' requests, and what each of them was told
    reading     the ledger, event by event, held against the traffic
    services    the server, and the SaaS with its workers
    children    processes, none of which outlives the demo
    worker      what runs in a worker; it serves `saas`
"""

"""Bidding: one activity an order makes a provider out of a machine.

``activity``  the life of a bid: decide, reserve, price, bid, win or give everything back
``rules``     whether an order is one we could serve at all
``pricing``   what it costs: by scale, by chance, or by a script
"""

from leasehold.market.bids.activity import BidActivity, Bidder

__all__ = ["BidActivity", "Bidder"]

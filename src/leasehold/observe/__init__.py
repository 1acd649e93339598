"""Activities: code that sleeps until its entity has news.

``activity``  what an activity is: fold, settle, react, timers, saved state
``engine``    wakes them, one run per entity at a time, within limits, with retries
``lanes``     the limits: slots and a queue each
``tasks``     what the engine keeps of an activity, awake and asleep
"""

"""How long is waited for what, and how often is looked: one value, of which tests put a shorter one in its place."""

from __future__ import annotations

from msgspec import Struct


class Waits(Struct, frozen=True):
    """All in seconds.

    Attributes:
        idle_s: an interruption: what leaves nothing behind is not waited for any longer.
        busy_s: nor what clears up behind itself: to end it at any moment is safe, only not tidy.
        again_s: launchers pass on what the terminal has sent already: those are one interruption.
        poll_s: the first pause between looks into the folder of a job; later ones are longer.
        longest_poll_s: the longest of these pauses.
        beat_s: how often a rank gives a sign of life.
        look_s: how often a rank at work looks for the failures of others.
        awaited_s: how long a rank that cannot begin looks whether others wait for it.
        replaced_s: how long a rank that was killed early may lack its successor.
        linger_s: how long a leader that gives up stays, to tell those who come late.
        stall_s: how long a rank that lives may get nothing done; planning and syncing large files take their time.
        hello_try_s: how often a rank tries to greet another over the network.
        hello_look_s: how long to look for what the other wrote; a network file system may take seconds to show it.
        hello_pause_s: the pause between these looks.
        hello_answer_s: how long an answer to a greeting may take.
        store_connect_s: an object store: until a connection is there.
        store_silence_s: until the next bytes come.
        store_request_s: until a request is done.
        store_retry_s: how long requests that failed are tried again.
        store_pause_s: the first pause before that; later ones are longer.
        store_longest_pause_s: the longest of these pauses.
        ray_heard_s: how often is asked how far the tasks of a cluster are.
        ray_ending_s: how long tasks that were told to stop are waited for.
        ray_patience_s: how long no worker of a cluster may do anything.
        ray_answer_s: how long the process that counts progress may take to answer, and a head to be connected to.
        ray_seen_s: network file systems remember for a minute that a file was not there.
        ray_look_s: how often is looked whether it is there.
    """

    idle_s: float = 0.5
    busy_s: float = 10.0
    again_s: float = 1.0
    poll_s: float = 0.05
    longest_poll_s: float = 1.0
    beat_s: float = 1.0
    look_s: float = 1.0
    awaited_s: float = 2.0
    replaced_s: float = 10.0
    linger_s: float = 20.0
    stall_s: float = 600.0
    hello_try_s: float = 0.5
    hello_look_s: float = 5.0
    hello_pause_s: float = 0.25
    hello_answer_s: float = 30.0
    store_connect_s: float = 10.0
    store_silence_s: float = 30.0
    store_request_s: float = 120.0
    store_retry_s: float = 120.0
    store_pause_s: float = 0.1
    store_longest_pause_s: float = 10.0
    ray_heard_s: float = 1.0
    ray_ending_s: float = 6.0
    ray_patience_s: float = 120.0
    ray_answer_s: float = 10.0
    ray_seen_s: float = 90.0
    ray_look_s: float = 0.5


now = Waits()
"""Those in force, asked for where something is waited for."""

//! The wait layer: `src/wait/mod.rs`, `src/wait/signal.rs`, `src/wait/spin.rs`.
use crate::plan::{Mutation, loom, ordinary};

pub(crate) const MUTATIONS: &[Mutation] = &[
    Mutation {
        name: "a_sleeper_spins",
        file: "src/wait/mod.rs",
        from: "late = park(seen, deadline) == Wake::TimedOut;",
        to: "late = deadline.is_over();",
        rule: "A thread that has nothing to do uses no CPU.",
        outcome: ordinary("event", &["a_waiter_sleeps"]),
    },
    Mutation {
        name: "an_early_timeout",
        file: "src/wait/mod.rs",
        from: "late = park(seen, deadline) == Wake::TimedOut;",
        to: "park(seen, deadline); late = true;",
        rule: "Only the deadline ends a wait; a signal or a stale wake does not.",
        outcome: ordinary("semaphore", &["as_many_as_released_get_through"]),
    },
    Mutation {
        name: "a_doze_is_the_whole_wait",
        file: "src/wait/mod.rs",
        from: "late = deadline.is_over(); }",
        to: "late = dozed.is_some(); }",
        rule: "A doze that ends is no timeout.",
        outcome: ordinary("lock", &["times"]),
    },
    Mutation {
        name: "armed_without_a_number",
        file: "src/wait/signal.rs",
        from: "Some(armed.wrapping_add(ONCE) | ARMED)",
        to: "Some(armed | ARMED)",
        rule: "A thread that clears the armed bit must notice that another thread has armed since.",
        outcome: loom(&["condition::condition_is_armed_by_any_waiter"]),
    },
    Mutation {
        name: "notify_disarms_beside_sleepers",
        file: "src/wait/signal.rs",
        from: "self.seq.change_and_wake(Change::AddOne, n) == 0",
        to: "self.seq.change_and_wake(Change::AddOne, n) < 9",
        rule: "The armed bit is cleared only if nobody sleeps.",
        outcome: loom(&["queue::queue_wakes_every_blocked_receiver"]),
    },
    Mutation {
        name: "no_look_after_arming",
        file: "src/wait/signal.rs",
        from: "attempt().map_or(sleep, Step::Done)",
        to: "sleep",
        rule: "A change made before the arming is not announced: the sleeper must look once more.",
        outcome: loom(&["queue::queue_wakes_a_receiver_that_is_falling_asleep"]),
    },
    Mutation {
        name: "no_last_look_after_the_deadline",
        file: "src/wait/mod.rs",
        from: "late = park(seen, deadline) == Wake::TimedOut;",
        to: "if park(seen, deadline) == Wake::TimedOut { return Err(TimedOut); }",
        rule: "What can be had when the deadline has passed is had.",
        outcome: ordinary("once", &["a_last_look_after_the_deadline"]),
    },
    Mutation {
        name: "no_look_for_the_owner_at_the_end_of_a_sleep",
        file: "src/wait/mod.rs",
        from: "on_patience(); if first == until { return Wake::TimedOut; }",
        to: "if first == until { return Wake::TimedOut; } on_patience();",
        rule: "A wait of less than a second finds out at its end that the owner does not exist.",
        outcome: ordinary("exec", &["a_short_wait_gives_a_lock_back"]),
    },
];

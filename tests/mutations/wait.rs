//! The wait layer: `src/wait/operation.rs`, `src/wait/signal.rs`, `src/wait/robust/futex.rs`.
use crate::plan::{Mutation, loom, ordinary};

pub(crate) const MUTATIONS: &[Mutation] = &[
    Mutation {
        name: "a_sleeper_spins",
        file: "src/wait/operation.rs",
        from: "late = operation.park(sleep, deadline) == Wake::TimedOut;",
        to: "late = deadline.is_over();",
        rule: "A thread that has nothing to do uses no CPU.",
        outcome: ordinary("event", &["a_waiter_sleeps"]),
    },
    Mutation {
        name: "an_early_timeout",
        file: "src/wait/operation.rs",
        from: "late = operation.park(sleep, deadline) == Wake::TimedOut;",
        to: "operation.park(sleep, deadline); late = true;",
        rule: "Only the deadline ends a wait; a signal or a stale wake does not.",
        outcome: ordinary("semaphore", &["signals_during_a_timeout"]),
    },
    Mutation {
        name: "a_bounded_sleep_is_the_whole_wait",
        file: "src/wait/operation.rs",
        from: "late = deadline.is_over(); } else",
        to: "late = unchanged.is_some(); } else",
        rule: "The end of a bounded sleep is no timeout.",
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
        rule: "The armed bit is cleared only if no thread sleeps.",
        outcome: loom(&["queue::queue_wakes_every_blocked_receiver"]),
    },
    Mutation {
        name: "no_look_after_arming",
        file: "src/wait/operation.rs",
        from: "return operation.attempt().map_or(armed, Armed::Done);",
        to: "return armed;",
        rule: "A change made before the arming is not announced: the sleeper must look once more.",
        outcome: loom(&["queue::queue_wakes_a_receiver_that_is_falling_asleep"]),
    },
    Mutation {
        name: "no_last_look_after_the_deadline",
        file: "src/wait/operation.rs",
        from: "let done = operation.attempt();",
        to: "let done = None;",
        rule: "What can be had when the deadline has passed is had.",
        outcome: ordinary("once", &["a_last_look_after_the_deadline"]),
    },
    Mutation {
        name: "no_look_for_the_owner_at_the_end_of_a_sleep",
        file: "src/wait/robust/futex.rs",
        from: "self.of.mark_if_gone(); // keeps I6 if first == until { return Wake::TimedOut; }",
        to: "if first == until { return Wake::TimedOut; } self.of.mark_if_gone();",
        rule: "A wait of less than a second finds out at its end that the owner does not exist.",
        outcome: ordinary("exec", &["a_short_wait_gives_a_lock_back"]),
    },
];

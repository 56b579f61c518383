//! Locks and robust words: `src/lock.rs`, `src/wait/robust`, `src/sys/robust_futex*.rs`.
use crate::plan::{Mutation, hooks, loom, ordinary};

pub(crate) const MUTATIONS: &[Mutation] = &[
    Mutation {
        name: "a_death_is_clean",
        file: "src/wait/robust/futex.rs",
        from: "Ok(_) if seen & OWNER_DIED == 0 => Step::Done(Ok(Taken::Clean)),",
        to: "Ok(_) if seen != 1 => Step::Done(Ok(Taken::Clean)),",
        rule: "The thread that takes a dead owner's word is told.",
        outcome: ordinary("lock", &["deaths_in_a_row"]),
    },
    Mutation {
        name: "an_owned_word_without_waiters",
        file: "src/wait/robust/futex.rs",
        from: "me.tid() | WAITERS // keeps I2",
        to: "me.tid()",
        rule: "The kernel wakes a sleeper for a dead owner only if the word says that one sleeps.",
        outcome: hooks("lock", &["a_killed_owner_wakes_the_sleepers_one_after_the_other"]),
    },
    Mutation {
        name: "release_wakes_nobody",
        file: "src/wait/robust/futex.rs",
        from: "self.wake_one(); // keeps I4",
        to: "",
        rule: "The thread that gives up a word wakes a sleeper.",
        outcome: loom(&["lock::lock_wakes_every_sleeper"]),
    },
    Mutation {
        name: "a_sleeper_does_not_arm",
        file: "src/wait/robust/futex.rs",
        from: "(armed & 1 == 0).then_some(armed.wrapping_add(1))",
        to: "(armed & 1 == 0).then_some(armed)",
        rule: "The count says that a thread may be asleep before that thread looks a last time.",
        outcome: loom(&["lock::lock_wakes_every_sleeper"]),
    },
    Mutation {
        name: "a_released_word_stays_listed",
        file: "src/wait/robust/futex.rs",
        from: "let was_listed = me.unlink(&self.links);",
        to: "let was_listed = me.has(&self.links);",
        rule: "The next owner writes the links of a word, so the last owner's list must not have it.",
        outcome: ordinary("lock", &["a_thread_can_hold_a_thousand"]),
    },
    Mutation {
        name: "a_forked_copy_releases",
        file: "src/wait/robust/futex.rs",
        from: "if me.tid() != taker.tid() { return; \
               // a copy made by fork; by now the child may have taken the word for itself }",
        to: "",
        rule: "A guard copied by fork must not give up what the child has taken itself.",
        outcome: ordinary("rwlock", &["a_copy_does_not_give_up_what_the_child_took_itself"]),
    },
    Mutation {
        name: "the_outer_lock_is_not_listed",
        file: "src/sys/robust_futex.rs",
        from: "if unlisted() != 0 { self.spill(); } self.head().pending",
        to: "self.head().pending",
        rule: "Only one word fits into the pending field: the one held there moves to the list.",
        outcome: ordinary("lock", &["nested_locks_of_the_dead"]),
    },
    Mutation {
        name: "no_limit_of_locks",
        file: "src/sys/robust_futex.rs",
        from: "> MAX_HELD",
        to: "> 2 * MAX_HELD",
        rule: "The kernel walks 2,048 entries of a dead thread's list, and the private stack has \
               room for a thousand.",
        outcome: ordinary("lock", &["a_thread_can_hold_a_thousand"]),
    },
    Mutation {
        name: "memory_goes_with_a_word_pending",
        file: "src/sys/robust_futex.rs",
        from: "threads::forget_pending(within);",
        to: "",
        rule: "When a thread ends, the kernel looks at the address in its pending field, which must \
               not lie in memory that is gone.",
        outcome: ordinary("lock", &["what_threads_have_left_pending_goes_with_the_memory"]),
    },
    Mutation {
        name: "death_is_no_poison",
        file: "src/lock.rs",
        from: "self.poison().store(DIED, Relaxed); // keeps I2",
        to: "",
        rule: "A lock whose owner died stays poisoned until an owner says otherwise.",
        outcome: ordinary("lock", &["a_killed_owner_wakes_the_sleepers_one_after_the_other"]),
    },
    Mutation {
        name: "a_panic_is_no_poison",
        file: "src/lock.rs",
        from: "if !self.panicking && std::thread::panicking() {",
        to: "if self.panicking && std::thread::panicking() {",
        rule: "A panic inside a critical section poisons the lock.",
        outcome: ordinary("lock", &["a_panic_poisons"]),
    },
    Mutation {
        name: "bits_are_not_checked",
        file: "src/lock.rs",
        from: "if !self.lock.value.with(|value| unsafe { T::is_valid(value) }) {",
        to: "if false {",
        rule: "A peer may write any bytes; a guard to an invalid value is undefined behaviour.",
        outcome: ordinary("lock", &["bits_that_are_no_value"]),
    },
];

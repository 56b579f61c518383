//! The operating system: futexes, threads, files.
use crate::plan::{Mutation, ordinary};

pub(crate) const MUTATIONS: &[Mutation] = &[
    Mutation {
        name: "futex_or_sets_another_bit",
        file: "src/sys/futex.rs",
        from: "Change::OrOne => (2, 1),",
        to: "Change::OrOne => (2, 2),",
        rule: "The wake and the change are one system call, which sets the lowest bit.",
        outcome: ordinary("event", &["who_sets_learns_whether_somebody_slept"]),
    },
    Mutation {
        name: "futex_clears_all",
        file: "src/sys/futex.rs",
        from: "Change::ClearLowestTwo => (3, 3),",
        to: "Change::ClearLowestTwo => (0, 0),",
        rule: "Clearing the bits of sleepers leaves the count of permits.",
        outcome: ordinary("semaphore", &["large_waiters_let_small_ones_through"]),
    },
    Mutation {
        name: "futex_deadline_is_now",
        file: "src/sys/futex.rs",
        from: "Some(left) => Some(time_after(left)),",
        to: "Some(_) => Some(time_after(Duration::ZERO)),",
        rule: "A wait is not early.",
        outcome: ordinary("lock", &["times"]),
    },
    Mutation {
        name: "thread_forgets_its_hold",
        file: "src/sys/thread.rs",
        from: "FAST_LOCKS_OFF.load(Relaxed)",
        to: "false",
        rule: "After a fork each lock makes its thread known to the segment first.",
        outcome: ordinary("condition", &["an_owner_that_was_no_peer_killed_before_its_notify"]),
    },
    Mutation {
        name: "file_keeps_open_on_exec",
        file: "src/sys/file.rs",
        from: "let flags = if close { libc::FD_CLOEXEC } else { 0 };",
        to: "let flags = 0;",
        rule: "A descriptor that was not handed on is not inherited.",
        outcome: ordinary("shared", &["by_exec"]),
    },
    Mutation {
        name: "robust_child_uses_the_parents_id",
        file: "src/sys/robust_futex.rs",
        from: "FAST.set((null(), 0)); KNOWN.set((null(), 0));",
        to: "FAST.set((null(), 0));",
        rule: "A forked child owns words by its own id.",
        outcome: ordinary("lock", &["a_guard_copied_by_fork_is_inert"]),
    },
    Mutation {
        name: "robust_foreign_nodes_are_not_noticed",
        file: "src/sys/robust_futex.rs",
        from: "FOREIGN.set(true);",
        to: "",
        rule: "Links beside a node of the C library are read from memory, as the C library does.",
        outcome: ordinary("lock", &["among_foreign_robust_mutexes"]),
    },
    Mutation {
        name: "futex_waitv_refused_panics",
        file: "src/sys/futex.rs",
        from: "_ => Err(WaitRefused),",
        to: "errno => panic!(\"futex_waitv: errno {errno}\"),",
        rule: "Sandboxes and older kernels refuse the call, and everything works all the same.",
        outcome: ordinary("refused_calls", &["futex_waitv_is_forbidden"]),
    },
];

//! The operating system: futexes, threads, files.
use crate::plan::{Mutation, ordinary};

pub(crate) const MUTATIONS: &[Mutation] = &[
    Mutation {
        name: "futex_wake_op_changes_nothing",
        file: "src/sys/futex.rs",
        from: "Change::OrOne => (2, 1),",
        to: "Change::OrOne => (1, 1),",
        rule: "Setting what is set already changes nothing.",
        outcome: ordinary("event", &["a_pulse_reaches_all_who_wait"]),
    },
    Mutation {
        name: "futex_clears_all",
        file: "src/sys/futex.rs",
        from: "Change::ClearLowestTwo => (3, 3),",
        to: "Change::ClearLowestTwo => (0, 0),",
        rule: "Clearing the bits of sleepers leaves the count of permits.",
        outcome: ordinary("semaphore", &["as_many_as_released_get_through"]),
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
        from: "HELD_BACK.load(Relaxed)",
        to: "false",
        rule: "After a fork each lock makes its thread known to the segment first.",
        outcome: ordinary("lock", &["a_guard_copied_by_fork_is_inert"]),
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
        name: "robust_child_keeps_the_parents_lock",
        file: "src/sys/robust_futex.rs",
        from: "set_unlisted(0); HELD_LEN.set(0); FOREIGN.set(false);",
        to: "HELD_LEN.set(0); FOREIGN.set(false);",
        rule: "A forked child holds none of its parent's locks.",
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
        from: "_ => Err(Refused),",
        to: "errno => panic!(\"futex_waitv: errno {errno}\"),",
        rule: "Sandboxes and older kernels refuse the call, and everything works all the same.",
        outcome: ordinary("refused_calls", &["futex_waitv_is_forbidden"]),
    },
];

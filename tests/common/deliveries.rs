//! How the tests in `ends.rs` hold a message of a channel with deliveries.

/// Receives a message that comes back if the process is killed.
macro_rules! hold {
    ($receiver:ident) => {
        $receiver.recv_ack()
    };
}

/// Like `hold!`, but does not wait.
macro_rules! try_hold {
    ($receiver:ident) => {
        $receiver.try_recv_ack()
    };
}

/// Whether a held message is message `n`, and has come back once.
macro_rules! is_back {
    ($held:ident, $n:expr) => {
        (*$held, $held.attempts()) == (message($n), 1)
    };
}

/// Acknowledges a held message.
macro_rules! let_go {
    ($held:ident) => {
        $held.ack().map(drop)
    };
}

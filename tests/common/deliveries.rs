//! How the stories in `ends.rs` hold a message, of channels with deliveries.

/// Receives a message that comes back if the process is killed.
macro_rules! hold {
    ($receiver:ident) => {
        $receiver.recv_ack()
    };
}

/// The same, if there is one.
macro_rules! try_hold {
    ($receiver:ident) => {
        $receiver.try_recv_ack()
    };
}

/// Whether it is the message of that number, and has come back once.
macro_rules! is_back {
    ($held:ident, $n:expr) => {
        (*$held, $held.attempts()) == (message($n), 1)
    };
}

/// Is done with it.
macro_rules! let_go {
    ($held:ident) => {
        $held.ack().map(drop)
    };
}

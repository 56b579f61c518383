//! The sweeps of handing an end over to a child. Three processes are killed at each instruction:
//! the one that hands the end over, the child while it passes the stand-in on, and the child while
//! it takes the end. The other side must learn each time that the end is gone.
//!
//! A stand-in ends by a sentinel's look, once a second. The build with hooks has that look shorter,
//! and so has time for all points; the others take a few.
use crate::stepper::patience;
use crate::sweep::{Act, Operation, Sweep};
use crate::sweeps::{Verdict, fail, options};
use outlast::spsc::{Producer, Ring};
use outlast::{
    Channel, CommandExt as _, Connection, HandOver, Pipe, Queue, RecvTimeoutError, Sender, Shared,
    Spin,
};
use std::cell::RefCell;
use std::fmt;
use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

const KEY: &str = "end";
#[cfg(outlast_hooks)]
const POINTS: usize = usize::MAX;
#[cfg(not(outlast_hooks))]
const POINTS: usize = 8;

/// An end, and what the other side does.
trait End: HandOver + 'static {
    const NAME: &'static str;
    fn segment() -> Shared<Self::Value>;
    fn end(shared: &Shared<Self::Value>) -> Self;
    /// What the other side does: it sleeps until the end is gone.
    fn learns(shared: &Shared<Self::Value>) -> Verdict;
}

fn disconnected<T: fmt::Debug>(received: Result<T, RecvTimeoutError>) -> Verdict {
    match received {
        Err(RecvTimeoutError::Disconnected) => Ok(()),
        other => fail(format!("{other:?}")),
    }
}

impl End for Connection<Shared<Pipe>> {
    const NAME: &'static str = "pipe";
    fn segment() -> Shared<Pipe> {
        options().with_capacity(512).expect("a segment")
    }
    fn end(pipe: &Shared<Pipe>) -> Self {
        pipe.second().expect("room")
    }
    fn learns(pipe: &Shared<Pipe>) -> Verdict {
        let first = pipe.first().map_err(|fault| fault.to_string())?;
        disconnected(first.recv_bytes_timeout(patience()))
    }
}

impl End for Sender<Queue<u64>> {
    const NAME: &'static str = "channel";
    fn segment() -> Shared<Channel<Queue<u64>>> {
        options().with_capacity(4).expect("a segment")
    }
    fn end(channel: &Shared<Channel<Queue<u64>>>) -> Self {
        channel.sender().expect("room")
    }
    fn learns(channel: &Shared<Channel<Queue<u64>>>) -> Verdict {
        let receiver = channel.receiver().map_err(|fault| fault.to_string())?;
        disconnected(receiver.recv_timeout(patience()))
    }
}

/// The next producer learns that the role is free.
impl End for Producer<u64> {
    const NAME: &'static str = "ring";
    fn segment() -> Shared<Ring<u64>> {
        options().with_capacity(4).expect("a segment")
    }
    fn end(ring: &Shared<Ring<u64>>) -> Self {
        ring.try_producer().expect("free")
    }
    fn learns(ring: &Shared<Ring<u64>>) -> Verdict {
        ring.producer_timeout(patience()).map(drop).map_err(|error| error.to_string())
    }
}

struct World<E: End> {
    shared: Shared<E::Value>,
    /// The whole segment: the stand-in lies in the peer table.
    file: File,
    /// Has the end, unless the victim is the process that hands it over.
    command: RefCell<Option<Command>>,
}

impl<E: End> fmt::Debug for World<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(E::NAME)
    }
}

/// A command that fails once its child would have executed it.
fn command() -> Command {
    Command::new("/nonexistent/program")
}

fn nothing_handed_over<E: End>() -> World<E> {
    Spin::Never.set();
    #[cfg(outlast_hooks)]
    outlast::hooks::set_sentinel_look(std::time::Duration::from_millis(5));
    let shared = E::segment();
    let file = File::from(shared.try_clone_fd().expect("a descriptor"));
    World { shared, file, command: RefCell::new(None) }
}

fn handed_over<E: End>() -> World<E> {
    let world = nothing_handed_over::<E>();
    let mut command = command();
    command.hand_over(KEY, E::end(&world.shared));
    world.command.replace(Some(command));
    world
}

fn memory<E: End>(world: &World<E>) -> Vec<u8> {
    let length = world.file.metadata().expect("a file").len();
    let mut bytes = vec![0; usize::try_from(length).expect("a small one")];
    world.file.read_exact_at(&mut bytes, 0).expect("the whole segment");
    bytes
}

fn hands_over<E: End>(world: &World<E>) -> Box<dyn FnOnce() + '_> {
    let end = E::end(&world.shared);
    Box::new(move || {
        command().hand_over(KEY, end);
    })
}

fn passes_on<E: End>(world: &World<E>) -> Box<dyn FnOnce() + '_> {
    let mut command = world.command.take().expect("one that has the end");
    Box::new(move || {
        assert_eq!(command.exec().kind(), ErrorKind::NotFound);
        std::mem::forget(command);
    })
}

/// The child runs the program that the command has started, as it were.
fn takes<E: End>(world: &World<E>) -> Box<dyn FnOnce() + '_> {
    let mut command = world.command.take().expect("one that has the end");
    assert_eq!(command.exec().kind(), ErrorKind::NotFound);
    for (key, value) in command.get_envs() {
        // SAFETY: this thread alone uses the environment.
        unsafe { std::env::set_var(key, value.expect("a value")) };
    }
    std::mem::forget(command);
    Box::new(|| drop(E::inherited(KEY).expect("handed over")))
}

fn sleeper<E: End>(world: &World<E>) -> Verdict {
    E::learns(&world.shared)
}

/// The parent gives back what no child has.
fn parent_drops_it<E: End>(world: &World<E>) -> Verdict {
    drop(world.command.take());
    Ok(())
}

/// The end can be taken again.
fn carries_on<E: End>(world: &World<E>) -> Verdict {
    drop(E::end(&world.shared));
    Ok(())
}

fn with_sweep<E: End>(
    what: &str,
    world: fn() -> World<E>,
    victim: Operation<World<E>>,
    run: impl FnOnce(Sweep<'_, World<E>>),
) {
    let name = format!("{}: {what}", E::NAME);
    let sweep = Sweep::new(&name, &world, memory::<E>, victim, carries_on::<E>);
    let sleepers: &[Act<World<E>>] = &[sleeper::<E>];
    let after: Option<Act<World<E>>> = Some(parent_drops_it::<E>);
    run(Sweep { sleepers, after, most_points: POINTS, newcomer: true, ..sweep });
}

fn the_parent_is_killed<E: End>() {
    with_sweep("hand_over", nothing_handed_over::<E>, hands_over::<E>, |sweep| sweep.must_hold());
}

fn the_child_is_killed_before_exec<E: End>() {
    with_sweep("passed on", handed_over::<E>, passes_on::<E>, |sweep| sweep.must_hold());
}

fn the_child_is_killed_as_it_takes_the_end<E: End>() {
    with_sweep("inherited", handed_over::<E>, takes::<E>, |sweep| sweep.must_hold());
}

macro_rules! sweeps {
    ($($name:ident = $sweep:ident of $end:ty;)*) => {$(
        #[test]
        fn $name() {
            $sweep::<$end>();
        }
    )*};
}

sweeps! {
    pipe_parent = the_parent_is_killed of Connection<Shared<Pipe>>;
    pipe_child_before_exec = the_child_is_killed_before_exec of Connection<Shared<Pipe>>;
    pipe_child = the_child_is_killed_as_it_takes_the_end of Connection<Shared<Pipe>>;
}
#[cfg(outlast_hooks)]
sweeps! {
    channel_parent = the_parent_is_killed of Sender<Queue<u64>>;
    channel_child_before_exec = the_child_is_killed_before_exec of Sender<Queue<u64>>;
    channel_child = the_child_is_killed_as_it_takes_the_end of Sender<Queue<u64>>;
    ring_parent = the_parent_is_killed of Producer<u64>;
    ring_child_before_exec = the_child_is_killed_before_exec of Producer<u64>;
    ring_child = the_child_is_killed_as_it_takes_the_end of Producer<u64>;
}

/// A process that is frozen keeps what it has: the sleeper must be seen to sleep on.
#[cfg(outlast_hooks)]
#[test]
fn a_frozen_process_is_caught() {
    type Side = Connection<Shared<Pipe>>;
    with_sweep::<Side>("passed on", handed_over, passes_on, |sweep| {
        sweep.must_be_caught_unmended()
    });
    with_sweep::<Side>("inherited", handed_over, takes, |sweep| sweep.must_be_caught_unmended());
    with_sweep::<Side>("hand_over", nothing_handed_over, hands_over, |sweep| {
        sweep.must_be_caught_unmended();
    });
}

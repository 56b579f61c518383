//! `CommandExt::hand_over`: an end on its way to a child is held, whatever is killed and when.
#![cfg(not(outlast_loom))]
mod common;

use common::{
    KILLED, exit_now, fork_child, ms, my_part, part_is_done, sleep_for_ever, start_again, watch,
};
use outlast::spsc::{Consumer, Producer, Ring};
use outlast::{
    Channel, CommandExt, Connection, Fault, HandOver, OpenError, Pipe, Queue, Receiver, RecvError,
    RecvTimeoutError, Sender, Shared,
};
use std::process::Command;

type End = Connection<Shared<Pipe>>;

fn pipe() -> (Shared<Pipe>, End) {
    let pipe = Shared::<Pipe>::with_capacity(4096).unwrap();
    let first = pipe.first().unwrap();
    (pipe, first)
}

/// Longer than a sentinel takes to look whether owners exist.
const LONG: u64 = 1_500;

#[test]
fn taken_by_the_child() {
    if my_part().is_some() {
        std::thread::sleep(ms(LONG));
        let end = End::inherited("the pipe").unwrap();
        // Taken once; and not under another name.
        assert!(matches!(End::inherited("the pipe"), Err(OpenError::NotInherited)));
        assert!(matches!(End::inherited("a pipe"), Err(OpenError::NotInherited)));
        end.send_bytes(b"here").unwrap();
        assert_eq!(end.recv_bytes(), Ok(b"and there".to_vec()));
        // What was the stand-in's is given back by now, or soon; what is this process's stays.
        std::thread::sleep(ms(LONG));
        end.send_bytes(b"still here").unwrap();
        part_is_done();
    }
    let (pipe, first) = pipe();
    let _watchdog = watch("taken_by_the_child", &pipe);
    let second = pipe.second().unwrap();
    let child = start_again("taken_by_the_child", "child", |command| {
        command.hand_over("the pipe", second);
    });
    // On its way.
    assert_eq!(first.recv_bytes_timeout(ms(LONG / 2)), Err(RecvTimeoutError::TimedOut));
    assert_eq!(first.recv_bytes(), Ok(b"here".to_vec()));
    first.send_bytes(b"and there").unwrap();
    assert_eq!(first.recv_bytes(), Ok(b"still here".to_vec()));
    assert_eq!(first.recv_bytes(), Err(RecvError::Disconnected));
    child.has_played();
}

#[test]
fn killed_before_it_takes() {
    if my_part().is_some() {
        sleep_for_ever();
    }
    let (pipe, first) = pipe();
    let _watchdog = watch("killed_before_it_takes", &pipe);
    let second = pipe.second().unwrap();
    let child = start_again("killed_before_it_takes", "child", |command| {
        command.hand_over("pipe", second);
    });
    assert_eq!(first.recv_bytes_timeout(ms(LONG)), Err(RecvTimeoutError::TimedOut));
    // Its end counts even before it is reaped by `wait`.
    child.signal(libc::SIGKILL);
    assert_eq!(first.recv_bytes(), Err(RecvError::Disconnected));
    assert_eq!(child.wait(), KILLED);
    // The side can be had again.
    pipe.second().unwrap().send_bytes(b"again").unwrap();
    assert_eq!(first.recv_bytes(), Ok(b"again".to_vec()));
}

/// The parent dies on the way: the child takes its end all the same.
#[test]
fn the_parent_dies_first() {
    if my_part().is_some() {
        let end = End::inherited("pipe").unwrap();
        end.send_bytes(b"here").unwrap();
        part_is_done();
    }
    let (pipe, first) = pipe();
    let _watchdog = watch("the_parent_dies_first", &pipe);
    let parent = fork_child(|| {
        let second = pipe.second().unwrap();
        let mut command = Command::new("sh");
        command
            .args(["-c", "sleep 2; exec \"$@\"", "sh"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "the_parent_dies_first", "--nocapture", "--test-threads=1"])
            .env("OUTLAST_TEST_PART", "child")
            .stdout(std::process::Stdio::null())
            .hand_over("pipe", second);
        core::mem::forget(command.spawn().unwrap()); // outlives this process
        exit_now(0);
    });
    parent.succeeds();
    assert_eq!(first.recv_bytes_timeout(ms(LONG)), Err(RecvTimeoutError::TimedOut));
    assert_eq!(first.recv_bytes(), Ok(b"here".to_vec()));
    assert_eq!(first.recv_bytes(), Err(RecvError::Disconnected));
}

#[test]
fn ends_of_channels() {
    type Line = Queue<u64>;
    if let Some(part) = my_part() {
        std::thread::sleep(ms(LONG));
        if part == "sender" {
            // It is no receiver.
            assert!(matches!(Receiver::<Line>::inherited("end"), Err(OpenError::NotInherited)));
            Sender::<Line>::inherited("end").unwrap().send(7).unwrap();
        } else {
            assert_eq!(Receiver::<Line>::inherited("end").unwrap().recv(), Ok(8));
        }
        part_is_done();
    }
    let channel = Shared::<Channel<Line>>::with_capacity(1).unwrap();
    let _watchdog = watch("ends_of_channels", &channel);
    let (sender, receiver) = (channel.sender().unwrap(), channel.receiver().unwrap());
    let child = start_again("ends_of_channels", "sender", |command| {
        command.hand_over("end", sender);
    });
    assert_eq!(receiver.recv_timeout(ms(LONG / 2)), Err(RecvTimeoutError::TimedOut));
    assert_eq!(receiver.recv(), Ok(7));
    assert_eq!(receiver.recv(), Err(RecvError::Disconnected));
    child.has_played();
    let sender = channel.sender().unwrap();
    let child = start_again("ends_of_channels", "receiver", |command| {
        command.hand_over("end", receiver);
    });
    sender.send(8).unwrap();
    child.has_played();
    // The receiver is gone, with a message that it took. With one backend that is noticed later.
    common::eventually("no receiver is left", || channel.receivers() == 0);
    assert!(sender.send(9).is_err());
}

#[test]
fn ends_of_rings() {
    if let Some(part) = my_part() {
        std::thread::sleep(ms(LONG));
        if part == "producer" {
            assert!(matches!(Consumer::<u64>::inherited("end"), Err(OpenError::NotInherited)));
            Producer::<u64>::inherited("end").unwrap().send_batch(&[7, 8]).unwrap();
        } else {
            assert_eq!(Consumer::<u64>::inherited("end").unwrap().recv(), Ok(7));
        }
        part_is_done();
    }
    let ring = Shared::<Ring<u64>>::with_capacity(2).unwrap();
    let _watchdog = watch("ends_of_rings", &ring);
    let (producer, consumer) = (ring.producer().unwrap(), ring.consumer().unwrap());
    let child = start_again("ends_of_rings", "producer", |command| {
        command.hand_over("end", producer);
    });
    assert!(ring.try_producer().is_err());
    assert_eq!(consumer.recv_timeout(ms(LONG / 2)), Err(RecvTimeoutError::TimedOut));
    child.has_played();
    let producer = ring.producer_timeout(common::PATIENCE).unwrap();
    assert!(!producer.predecessor_died());
    let child = start_again("ends_of_rings", "consumer", |command| {
        command.hand_over("end", consumer);
    });
    child.has_played();
    assert_eq!(ring.consumer_timeout(common::PATIENCE).unwrap().recv(), Ok(8));
    // A copy made by fork is no end.
    let child = fork_child(move || {
        assert!(Command::new("true").hand_over("end", producer).status().is_err());
    });
    child.succeeds();
    assert!(ring.producer_timeout(common::PATIENCE).is_ok());
}

#[test]
fn one_child_gets_it() {
    let (pipe, first) = pipe();
    let _watchdog = watch("one_child_gets_it", &pipe);
    // None is started.
    let mut command = Command::new("true");
    command.hand_over("pipe", pipe.second().unwrap());
    assert_eq!(first.recv_bytes_timeout(ms(LONG)), Err(RecvTimeoutError::TimedOut));
    drop(command);
    assert_eq!(first.recv_bytes(), Err(RecvError::Disconnected));
    // A program that does not exist.
    let mut command = Command::new("/nonexistent/program");
    command.hand_over("pipe", pipe.second().unwrap());
    assert!(command.spawn().is_err());
    assert_eq!(first.recv_bytes(), Err(RecvError::Disconnected));
    // A second child is refused.
    let mut command = Command::new("true");
    command.hand_over("pipe", pipe.second().unwrap());
    assert!(command.status().unwrap().success());
    assert_eq!(first.recv_bytes(), Err(RecvError::Disconnected));
    assert!(command.status().is_err());
}

#[test]
fn what_cannot_be_handed_on() {
    let (pipe, first) = pipe();
    let _watchdog = watch("what_cannot_be_handed_on", &pipe);
    // A part of a segment has no descriptor.
    let part = pipe.project(|pipe| pipe).second().unwrap();
    assert!(Command::new("true").hand_over("pipe", part).status().is_err());
    assert_eq!(first.recv_bytes(), Err(RecvError::Disconnected));
    // A copy made by fork is no end.
    let second = pipe.second().unwrap();
    let child = fork_child(move || {
        assert_eq!(second.send_bytes(b"x"), Err(outlast::SendError::Failed((), Fault::Forked)));
        assert!(Command::new("true").hand_over("pipe", second).status().is_err());
    });
    child.succeeds();
    assert!(matches!(End::inherited("pipe"), Err(OpenError::NotInherited)));
}

//! Whether what several threads did to a queue could have been done by one after the other.
use std::collections::VecDeque;
use std::sync::Mutex;

/// What an operation did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Did {
    Send(u32),
    Receive(u32),
}

#[derive(Clone, Copy, Debug)]
struct Operation {
    did: Did,
    /// Both in steps of the clock.
    began: u32,
    ended: u32,
}

/// The operations that did something, and a clock. The model checker sees neither, so they add no
/// orders.
#[derive(Debug, Default)]
pub(crate) struct History(Mutex<(u32, Vec<Operation>)>);

impl History {
    /// Does something and notes it, unless it came to nothing.
    pub(crate) fn note(&self, act: impl FnOnce() -> Option<Did>) {
        let began = self.tick();
        if let Some(did) = act() {
            let ended = self.tick();
            self.0.lock().unwrap().1.push(Operation { did, began, ended });
        }
    }

    fn tick(&self) -> u32 {
        let time = &mut self.0.lock().unwrap().0;
        *time += 1;
        *time
    }

    /// A queue of that capacity, which was empty in the beginning and is now, could have done this
    /// one by one, each while it was asked.
    pub(crate) fn assert_linearizable(&self, capacity: usize) {
        let operations = self.0.lock().unwrap().1.clone();
        let could = can_be_done(&operations, &mut VecDeque::new(), capacity);
        assert!(could, "in no order a queue of {capacity}: {operations:#?}");
    }
}

/// Tries each that began before any other had ended as the next one.
fn can_be_done(rest: &[Operation], queue: &mut VecDeque<u32>, capacity: usize) -> bool {
    let Some(limit) = rest.iter().map(|operation| operation.ended).min() else {
        return queue.is_empty();
    };
    (0..rest.len()).filter(|&i| rest[i].began <= limit).any(|i| {
        let mut rest = rest.to_vec();
        let mut queue = queue.clone();
        let fits = match rest.remove(i).did {
            Did::Send(message) => {
                queue.push_back(message);
                queue.len() <= capacity
            }
            Did::Receive(message) => queue.pop_front() == Some(message),
        };
        fits && can_be_done(&rest, &mut queue, capacity)
    })
}

#[test]
fn history_knows_what_no_queue_does() {
    use Did::{Receive, Send};
    let one_by_one = |done: &[Did]| {
        let operations =
            (0..).zip(done).map(|(i, did)| Operation { did: *did, began: i, ended: i });
        can_be_done(&operations.collect::<Vec<_>>(), &mut VecDeque::new(), 2)
    };
    assert!(one_by_one(&[Send(1), Send(2), Receive(1), Receive(2)]));
    assert!(!one_by_one(&[Send(1), Send(2), Receive(2), Receive(1)]));
    assert!(!one_by_one(&[Receive(1), Send(1)]));
    assert!(!one_by_one(&[Send(1), Receive(1), Receive(1)]));
    assert!(!one_by_one(&[Send(1), Send(2), Send(3), Receive(1), Receive(2), Receive(3)]));
    assert!(!one_by_one(&[Send(1)]));
    let at_once = [Receive(2), Receive(1), Send(2), Send(1)];
    let at_once = at_once.map(|did| Operation { did, began: 0, ended: 1 });
    assert!(can_be_done(&at_once, &mut VecDeque::new(), 2));
}

//! Compares a queue with a model of it. Every verb is called from two mappings of the same segment.
//! Now and then one mapping leaves with what it holds. One thread makes all calls, so that the
//! model knows each answer.
#![no_main]

use arbitrary::{Arbitrary, Unstructured};
use libfuzzer_sys::fuzz_target;
use outlast::queue::IN_FLIGHT;
use outlast::{
    Delivery, Loan, Options, Queue, RecvError, RecvTimeoutError, Ref, SendError, SendTimeoutError,
    Shared, TryRecvError, TrySendError,
};
use std::collections::VecDeque;
use std::time::Duration;

#[derive(Clone, Copy, Debug)]
enum Verb {
    TrySend,
    Send,
    SendTimeout,
    SendBatch,
    TryRecv,
    Recv,
    RecvTimeout,
    RecvBatch,
    Drain,
    TryRecvAck,
    RecvAck,
    RecvAckTimeout,
    Ack,
    Nack,
    DropDelivery,
    TryLoan,
    Loan,
    Commit,
    Abort,
    TryRecvRef,
    RecvRef,
    DropRef,
    Join,
    Close,
    /// The second mapping leaves with all that it holds, and comes back.
    Leave,
}

const VERBS: [Verb; 25] = {
    use Verb::*;
    [
        TrySend,
        Send,
        SendTimeout,
        SendBatch,
        TryRecv,
        Recv,
        RecvTimeout,
        RecvBatch,
        Drain,
        TryRecvAck,
        RecvAck,
        RecvAckTimeout,
        Ack,
        Nack,
        DropDelivery,
        TryLoan,
        Loan,
        Commit,
        Abort,
        TryRecvRef,
        RecvRef,
        DropRef,
        Join,
        Close,
        Leave,
    ]
};

#[derive(Clone, Copy, Debug)]
struct Step {
    /// By the second mapping.
    second: bool,
    verb: Verb,
    /// How many, or which of several.
    choice: u8,
}

#[derive(Debug)]
struct Input {
    capacity: usize,
    steps: Vec<Step>,
}

/// A byte for the capacity, then two bytes a step: short inputs do much.
impl<'a> Arbitrary<'a> for Input {
    fn arbitrary(bytes: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        let capacity = 1 + usize::from(bytes.arbitrary::<u8>()?) % 9;
        let mut steps = Vec::new();
        while let Ok([verb, choice]) = bytes.bytes(2).map(|pair| [pair[0], pair[1]]) {
            let verb_number = usize::from(verb & 0x7f) % VERBS.len();
            steps.push(Step { second: verb & 0x80 != 0, verb: VERBS[verb_number], choice });
        }
        Ok(Input { capacity, steps })
    }
}

// ------------------------------------------------------------------------- model

/// One position of the ring.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Entry {
    Loaned,
    Full(u32),
    /// Read in place.
    Lent,
    /// Read in place by one who left.
    Orphan(u32),
    /// Free for the next lap.
    Done,
}

/// What a receiver gets.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Found {
    /// One of those that came back.
    Returned,
    /// The next one of the ring, at this place in the model's window.
    Next(usize),
    /// The next one is being written.
    Yet,
    Nothing,
}

/// The model.
#[derive(Debug)]
struct Model {
    capacity: usize,
    /// The last `capacity` positions that were claimed, oldest first.
    window: VecDeque<Entry>,
    /// How many positions have left the window.
    passed: u64,
    /// Messages in cells that wait to be delivered again, and the attempts so far.
    ready: Vec<(u32, u32)>,
    /// Cells that are held, or read in place.
    busy_cells: usize,
    closed: bool,
    next_message: u32,
}

impl Model {
    fn message(&mut self) -> u32 {
        self.next_message += 1;
        self.next_message
    }

    fn is_full(&self) -> bool {
        self.window.len() == self.capacity && self.window.front() != Some(&Entry::Done)
    }

    /// Claims the next position for writing; its number.
    fn claim(&mut self, entry: Entry) -> u64 {
        assert!(!self.is_full());
        if self.window.len() == self.capacity {
            self.window.pop_front();
            self.passed += 1;
        }
        self.window.push_back(entry);
        self.passed + self.window.len() as u64 - 1
    }

    fn entry(&mut self, position: u64) -> &mut Entry {
        let at = usize::try_from(position - self.passed).expect("a claimed position stays");
        &mut self.window[at]
    }

    fn find(&self) -> Found {
        if !self.ready.is_empty() || self.window.iter().any(|e| matches!(e, Entry::Orphan(_))) {
            return Found::Returned;
        }
        for (i, entry) in self.window.iter().enumerate() {
            match entry {
                Entry::Full(_) => return Found::Next(i),
                Entry::Loaned => return Found::Yet,
                Entry::Lent | Entry::Orphan(_) | Entry::Done => {}
            }
        }
        Found::Nothing
    }

    fn has_message(&self) -> bool {
        matches!(self.find(), Found::Returned | Found::Next(_))
    }

    fn has_cell(&self) -> bool {
        self.busy_cells + self.ready.len() < IN_FLIGHT
    }

    /// Takes the message that a receiver got; `None` if it should not have been this one.
    fn take(&mut self, got: u32) -> Option<Taken> {
        match self.find() {
            Found::Returned => {
                if let Some(i) = self.ready.iter().position(|&(message, _)| message == got) {
                    let (_, attempts) = self.ready.swap_remove(i);
                    return Some(Taken { attempts, position: None });
                }
                assert!(self.ready.is_empty(), "messages in cells come first");
                let i = self.window.iter().position(|&entry| entry == Entry::Orphan(got))?;
                self.window[i] = Entry::Done;
                Some(Taken { attempts: 0, position: Some(self.passed + i as u64) })
            }
            Found::Next(i) => {
                (self.window[i] == Entry::Full(got)).then(|| self.window[i] = Entry::Done)?;
                Some(Taken { attempts: 0, position: Some(self.passed + i as u64) })
            }
            Found::Yet | Found::Nothing => None,
        }
    }

    fn expect(&mut self, got: u32) -> Taken {
        self.take(got).unwrap_or_else(|| panic!("got {got} from {self:#?}"))
    }

    /// What `try_recv` must say if it receives nothing.
    fn refuse(&self) -> TryRecvError {
        match self.find() {
            Found::Nothing if self.closed => TryRecvError::Closed,
            Found::Nothing | Found::Yet => TryRecvError::Empty,
            found => panic!("nothing came, but there is {found:?} in {self:#?}"),
        }
    }

    /// Whether `recv_ack` must give something now.
    fn can_deliver(&self) -> bool {
        // What lies in a cell stays there, all else needs one.
        !self.ready.is_empty() || (self.has_message() && self.has_cell())
    }

    fn refuse_delivery(&self) -> TryRecvError {
        assert!(!self.can_deliver(), "nothing was delivered from {self:#?}");
        match self.has_message() {
            true => TryRecvError::TooManyInFlight,
            false => self.refuse(),
        }
    }

    fn is_idle(&self) -> bool {
        self.window.iter().all(|&entry| entry == Entry::Done)
            && self.ready.is_empty()
            && self.busy_cells == 0
    }

    fn check(&self, queue: &Queue<u32>) {
        assert_eq!(queue.capacity(), self.capacity);
        assert_eq!(queue.is_closed(), self.closed);
        assert_eq!(queue.is_full(), self.is_full(), "{self:#?}");
        assert_eq!(queue.is_empty(), self.find() == Found::Nothing, "{self:#?}");
        let mut rest = self.window.iter().skip_while(|entry| !matches!(entry, Entry::Full(_)));
        let messages = self.window.iter().filter(|entry| matches!(entry, Entry::Full(_))).count();
        let len = queue.len();
        if rest.all(|entry| matches!(entry, Entry::Full(_)))
            && !self.window.contains(&Entry::Loaned)
        {
            assert_eq!(len, messages, "{self:#?}");
        }
        assert!((messages..=self.capacity).contains(&len), "len {len} of {self:#?}");
    }
}

/// Where a message came from.
#[derive(Clone, Copy, Debug)]
struct Taken {
    attempts: u32,
    /// In the ring, or `None` for a cell.
    position: Option<u64>,
}

// ------------------------------------------------------------------------- play

/// The handles that one mapping holds.
#[derive(Default)]
struct Hands<'q> {
    deliveries: Vec<(Delivery<'q, u32>, u32)>,
    loans: Vec<(Loan<'q, u32>, u64)>,
    refs: Vec<(Ref<'q, u32>, Taken)>,
}

fn pick<T>(from: &mut Vec<T>, choice: u8) -> Option<T> {
    (!from.is_empty()).then(|| from.swap_remove(usize::from(choice) % from.len()))
}

fn try_again(error: RecvTimeoutError) -> TryRecvError {
    match error {
        RecvTimeoutError::TimedOut => TryRecvError::Empty,
        RecvTimeoutError::TooManyInFlight => TryRecvError::TooManyInFlight,
        RecvTimeoutError::Closed => TryRecvError::Closed,
        error => panic!("{error}"),
    }
}

impl<'q> Hands<'q> {
    fn delivered(&mut self, model: &mut Model, delivery: Delivery<'q, u32>) {
        assert!(model.can_deliver());
        let taken = model.expect(*delivery);
        assert_eq!(delivery.attempts(), taken.attempts, "{model:#?}");
        model.busy_cells += 1;
        self.deliveries.push((delivery, taken.attempts));
    }

    fn lent(&mut self, model: &mut Model, message: Ref<'q, u32>) {
        let taken = model.expect(*message);
        match taken.position {
            Some(position) => *model.entry(position) = Entry::Lent,
            None => model.busy_cells += 1,
        }
        self.refs.push((message, taken));
    }

    fn loaned(&mut self, model: &mut Model, mut loan: Loan<'q, u32>) {
        *loan = model.message();
        self.loans.push((loan, model.claim(Entry::Loaned)));
    }

    fn play(&mut self, queue: &'q Queue<u32>, model: &mut Model, step: Step) {
        let choice = step.choice;
        match step.verb {
            Verb::TrySend => {
                let message = model.message();
                match queue.try_send(message) {
                    Ok(()) => {
                        assert!(!model.closed);
                        model.claim(Entry::Full(message));
                    }
                    Err(TrySendError::Full(back)) => {
                        assert!(back == message && !model.closed && model.is_full(), "{model:#?}");
                    }
                    Err(TrySendError::Closed(back)) => assert!(back == message && model.closed),
                    Err(error) => panic!("{error}"),
                }
            }
            Verb::Send => {
                if !model.closed && model.is_full() {
                    return; // it would wait for ever
                }
                let message = model.message();
                match queue.send(message) {
                    Ok(()) => drop(model.claim(Entry::Full(message))),
                    Err(error) => assert!(model.closed && error == SendError::Closed(message)),
                }
            }
            Verb::SendTimeout => {
                let message = model.message();
                match queue.send_timeout(message, Duration::ZERO) {
                    Ok(()) => drop(model.claim(Entry::Full(message))),
                    Err(SendTimeoutError::Closed(back)) => assert!(back == message && model.closed),
                    Err(error) => {
                        assert_eq!(error, SendTimeoutError::TimedOut(message));
                        assert!(!model.closed && model.is_full());
                    }
                }
            }
            Verb::SendBatch => {
                let mut sent = Vec::new();
                for _ in 0..choice % 4 {
                    if !model.closed && model.is_full() {
                        break;
                    }
                    sent.push(model.message());
                    if !model.closed {
                        model.claim(Entry::Full(model.next_message));
                    }
                }
                let closed = model.closed && !sent.is_empty();
                assert_eq!(
                    queue.send_batch(&sent),
                    if closed { Err(SendError::Closed(0)) } else { Ok(()) }
                );
            }
            Verb::TryRecv => match queue.try_recv() {
                Ok(message) => {
                    model.expect(message);
                }
                Err(error) => assert_eq!(error, model.refuse()),
            },
            Verb::Recv => {
                if model.has_message() {
                    model.expect(queue.recv().expect("a message"));
                } else if model.refuse() == TryRecvError::Closed {
                    assert_eq!(queue.recv(), Err(RecvError::Closed));
                }
            }
            Verb::RecvTimeout => match queue.recv_timeout(Duration::ZERO) {
                Ok(message) => {
                    model.expect(message);
                }
                Err(error) => assert_eq!(try_again(error), model.refuse()),
            },
            Verb::RecvBatch => {
                let mut to = Vec::new();
                if model.has_message() {
                    let most = usize::from(choice % 12);
                    assert_eq!(queue.recv_batch(&mut to, most), Ok(to.len()));
                    to.iter().for_each(|&message| {
                        model.expect(message);
                    });
                    assert!(to.len() == most || !model.has_message(), "{model:#?}");
                } else if model.refuse() == TryRecvError::Closed {
                    assert_eq!(queue.recv_batch(&mut to, 1), Err(RecvError::Closed));
                }
            }
            Verb::Drain => {
                queue.drain().into_iter().for_each(|message| {
                    model.expect(message);
                });
                assert!(!model.has_message(), "{model:#?}");
            }
            Verb::TryRecvAck => match queue.try_recv_ack() {
                Ok(delivery) => self.delivered(model, delivery),
                Err(error) => assert_eq!(error, model.refuse_delivery()),
            },
            Verb::RecvAck => {
                if model.can_deliver() {
                    let delivery = queue.recv_ack().expect("a message");
                    self.delivered(model, delivery);
                } else if model.refuse_delivery() == TryRecvError::Closed {
                    assert_eq!(queue.recv_ack().map(drop), Err(RecvError::Closed));
                }
            }
            Verb::RecvAckTimeout => match queue.recv_ack_timeout(Duration::ZERO) {
                Ok(delivery) => self.delivered(model, delivery),
                Err(error) => assert_eq!(try_again(error), model.refuse_delivery()),
            },
            Verb::Ack => {
                if let Some((delivery, _)) = pick(&mut self.deliveries, choice) {
                    let message = *delivery;
                    assert_eq!(delivery.ack(), Ok(message));
                    model.busy_cells -= 1;
                }
            }
            Verb::Nack | Verb::DropDelivery => {
                if let Some((delivery, attempts)) = pick(&mut self.deliveries, choice) {
                    model.ready.push((*delivery, (attempts + 1).min(255)));
                    model.busy_cells -= 1;
                    if matches!(step.verb, Verb::Nack) { delivery.nack() } else { drop(delivery) }
                }
            }
            Verb::TryLoan => match queue.try_loan() {
                Ok(loan) => self.loaned(model, loan),
                Err(TrySendError::Closed(())) => assert!(model.closed),
                Err(error) => {
                    assert!(error.is_full() && !model.closed && model.is_full(), "{model:#?}");
                }
            },
            Verb::Loan => {
                if model.closed {
                    assert_eq!(queue.loan().map(drop), Err(SendError::Closed(())));
                } else if !model.is_full() {
                    let loan = queue.loan().expect("a free slot");
                    self.loaned(model, loan);
                }
            }
            Verb::Commit => {
                if let Some((loan, position)) = pick(&mut self.loans, choice) {
                    let message = *loan;
                    let (sent, entry) = if model.closed {
                        (Err(SendError::Closed(())), Entry::Done)
                    } else {
                        (Ok(()), Entry::Full(message))
                    };
                    assert_eq!(loan.send(), sent);
                    *model.entry(position) = entry;
                }
            }
            Verb::Abort => {
                if let Some((_, position)) = pick(&mut self.loans, choice) {
                    *model.entry(position) = Entry::Done;
                }
            }
            Verb::TryRecvRef => match queue.try_recv_ref() {
                Ok(message) => self.lent(model, message),
                Err(error) => assert_eq!(error, model.refuse()),
            },
            Verb::RecvRef => {
                if model.has_message() {
                    let message = queue.recv_ref().expect("a message");
                    self.lent(model, message);
                } else if model.refuse() == TryRecvError::Closed {
                    assert_eq!(queue.recv_ref().map(drop), Err(RecvError::Closed));
                }
            }
            Verb::DropRef => {
                if let Some((message, taken)) = pick(&mut self.refs, choice) {
                    drop(message);
                    match taken.position {
                        Some(position) => *model.entry(position) = Entry::Done,
                        None => model.busy_cells -= 1,
                    }
                }
            }
            Verb::Join => assert_eq!(queue.join_timeout(Duration::ZERO), Ok(model.is_idle())),
            Verb::Close => {
                queue.close();
                model.closed = true;
            }
            Verb::Leave => {}
        }
    }

    /// Everything is left behind, to be mended when the mapping leaves; that is no fault of the
    /// messages.
    fn abandon(self, model: &mut Model) {
        for (delivery, attempts) in self.deliveries {
            model.ready.push((*delivery, attempts));
            model.busy_cells -= 1;
            core::mem::forget(delivery);
        }
        for (loan, position) in self.loans {
            *model.entry(position) = Entry::Done;
            core::mem::forget(loan);
        }
        for (message, taken) in self.refs {
            match taken.position {
                Some(position) => *model.entry(position) = Entry::Orphan(*message),
                None => {
                    model.ready.push((*message, taken.attempts));
                    model.busy_cells -= 1;
                }
            }
            core::mem::forget(message);
        }
    }
}

fuzz_target!(|input: Input| {
    let capacity = input.capacity;
    let options = Options::new().processes(3).threads(4);
    let first: Shared<Queue<u32>> = options.with_capacity(capacity).expect("memory");
    let mut model = Model {
        capacity,
        window: VecDeque::new(),
        passed: 0,
        ready: Vec::new(),
        busy_cells: 0,
        closed: false,
        next_message: 0,
    };
    let mut first_hands = Hands::default();
    let mut steps = input.steps.iter().copied().peekable();
    while steps.peek().is_some() {
        let fd = first.try_clone_fd().expect("a descriptor");
        let second = Shared::<Queue<u32>>::from_fd(fd).expect("a second mapping");
        let mut second_hands = Hands::default();
        for step in steps.by_ref() {
            if matches!(step.verb, Verb::Leave) {
                break;
            } else if step.second {
                second_hands.play(&second, &mut model, step);
                model.check(&first);
            } else {
                first_hands.play(&first, &mut model, step);
                model.check(&second);
            }
        }
        second_hands.abandon(&mut model);
        drop(second);
        model.check(&first);
    }
});

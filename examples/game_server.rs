//! A game server of several processes that share the world and one listening socket.
//!
//! ```text
//! cargo run --release --example game_server -- [--players N] [--moves N] [--workers N] [--kill-one-every-ms MS]
//! ```
//!
//! The program starts the servers and plays against them, with 200 scripted players over TCP.
//! Whichever process accepts a connection serves it. When one is killed, its players connect again,
//! and another process goes on where they were.
//!
//! A move changes two things: the player's word (where it is, and how many moves it has made) and
//! the board. The word is the truth: it is stored in one instruction, and that is the moment at
//! which the move has happened. The board is what can be derived from it. A process that dies in
//! between leaves the lock to the next one, with `OwnerDied`, and that one makes the board anew. A
//! move is answered after its commit, and has a number: who got no answer asks again.
#![expect(
    clippy::cast_possible_truncation,
    reason = "64 bits are needed anyway, and numbers are small"
)]
mod crew;

use crew::{Crew, Options, TICK, report, role, this_program};
use outlast::{CommandExt as _, Event, Lock, LockError, LockGuard, Shared};
use std::error::Error;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::{ExitCode, Stdio};
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::time::{Duration, Instant};

/// The board is a square of this many cells each way.
const SIDE: usize = 32;
/// Players have numbers below this.
const MOST: usize = 512;
/// Longer than any answer takes, unless something hangs.
const TOO_LONG: Duration = Duration::from_secs(30);

/// Who stands where: the player's number plus one, or 0.
type Board = [[u32; SIDE]; SIDE];

outlast::shared! {
    struct World {
        board: Lock<Board>,
        /// The truth about each player, one `Place` each; changed under the board's lock.
        players: [AtomicU64; MOST],
        /// How often a process died in the middle of a move.
        mended: AtomicU64,
        stop: Event,
    }
}

/// Where a player is, after how many moves; none after 0.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Place {
    moves: u32,
    x: usize,
    y: usize,
}

impl Place {
    fn bits(self) -> u64 {
        u64::from(self.moves) << 32 | (self.x << 16 | self.y) as u64
    }

    fn from_bits(bits: u64) -> Self {
        let (x, y) = ((bits >> 16) as usize % SIDE, bits as usize % SIDE);
        Place { moves: (bits >> 32) as u32, x, y }
    }
}

impl World {
    fn place(&self, player: usize) -> Place {
        Place::from_bits(self.players[player].load(Acquire))
    }

    /// Takes the board, whole.
    fn board(&self) -> Result<LockGuard<'_, Board>, Box<dyn Error>> {
        match self.board.lock() {
            Ok(board) => Ok(board),
            Err(LockError::OwnerDied(mut board)) => {
                // It may be half changed: make it anew of what is true.
                *board = self.derived_board();
                self.mended.fetch_add(1, Relaxed);
                LockGuard::mark_consistent(&mut board);
                Ok(board)
            }
            Err(error) => Err(error.to_string().into()),
        }
    }

    fn derived_board(&self) -> Board {
        let mut board = [[0; SIDE]; SIDE];
        for player in 0..MOST {
            let place = self.place(player);
            if place.moves > 0 {
                board[place.y][place.x] = player as u32 + 1;
            }
        }
        board
    }

    /// Makes move `number`, unless it has been made already; where the player is then. The first
    /// move brings it in.
    fn make_move(&self, player: usize, number: u32, way: u8) -> Result<Place, Box<dyn Error>> {
        let mut board = self.board()?;
        let now = self.place(player);
        if number <= now.moves {
            return Ok(now); // made, and the answer was lost
        }
        let next = |at: usize, forth: u8, back: u8| match way {
            way if way == forth => (at + 1) % SIDE,
            way if way == back => (at + SIDE - 1) % SIDE,
            _ => at,
        };
        let mut to =
            Place { moves: number, x: next(now.x, b'E', b'W'), y: next(now.y, b'S', b'N') };
        if number == 1 {
            let free = (0..SIDE * SIDE).find(|i| board[i / SIDE][i % SIDE] == 0);
            let free = free.ok_or("the board is full")?;
            (to.x, to.y) = (free % SIDE, free / SIDE);
        } else if board[to.y][to.x] != 0 {
            (to.x, to.y) = (now.x, now.y); // taken: the player stays, and that was its move
        }
        if now.moves > 0 {
            board[now.y][now.x] = 0;
        }
        // Killed here, the player is nowhere on the board, and still at its old place in truth.
        self.players[player].store(to.bits(), Release); // the commit
        board[to.y][to.x] = player as u32 + 1;
        Ok(to)
    }
}

// --------------------------------------------------------------- the servers
fn serve() -> Result<(), Box<dyn Error>> {
    let world = Shared::<World>::inherited("world")?;
    // The listener has come as standard input.
    let listener = TcpListener::from(io::stdin().as_fd().try_clone_to_owned()?);
    let served = world.clone();
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let world = served.clone();
            std::thread::spawn(move || converse(&world, client).ok());
        }
    });
    world.stop.wait()?;
    Ok(())
}

/// One line for a line, `PLAYER NUMBER WAY`; the answer is `MOVES X Y`.
fn converse(world: &World, client: TcpStream) -> Result<(), Box<dyn Error>> {
    client.set_nodelay(true)?;
    let mut answers = &client;
    for line in BufReader::new(&client).lines() {
        let line = line?;
        let mut words = line.split(' ');
        let mut word = || words.next().ok_or("too few words");
        let (player, number) = (word()?.parse::<usize>()?, word()?.parse::<u32>()?);
        let way = word()?.bytes().next().ok_or("no way")?;
        if player >= MOST {
            return Err("no such player".into());
        }
        let place = world.make_move(player, number, way)?;
        answers.write_all(format!("{} {} {}\n", place.moves, place.x, place.y).as_bytes())?;
    }
    Ok(())
}

// --------------------------------------------------------------- the players
/// Plays one player's moves; where it is at last, and how often it had to connect anew.
fn play(
    player: usize,
    moves: u32,
    at: SocketAddr,
    done: &AtomicUsize,
) -> Result<(Place, usize), String> {
    let (mut connection, mut connections) = (None, 0);
    let mut place = Place { moves: 0, x: 0, y: 0 };
    let mut patience = Instant::now() + TOO_LONG;
    while place.moves < moves {
        let number = place.moves + 1;
        let way = char::from(b"NESW"[(player * 7 + number as usize / 3) % 4]);
        match ask(&mut connection, at, &format!("{player} {number} {way}\n")) {
            // Every move that was answered before is there, or the world has forgotten it.
            Ok(answer) if answer.moves == number => {
                place = answer;
                done.fetch_add(1, Relaxed);
                patience = Instant::now() + TOO_LONG;
            }
            Ok(answer) => return Err(format!("player {player}: {answer:?} for {number}")),
            Err(_) if Instant::now() < patience => {
                connection = None; // its server was killed: the same again, to another
                connections += 1;
            }
            Err(error) => return Err(format!("player {player}: {error}")),
        }
    }
    Ok((place, connections))
}

fn ask(
    connection: &mut Option<BufReader<TcpStream>>,
    at: SocketAddr,
    question: &str,
) -> Result<Place, Box<dyn Error>> {
    if connection.is_none() {
        let stream = TcpStream::connect_timeout(&at, TOO_LONG)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(TOO_LONG))?;
        *connection = Some(BufReader::new(stream));
    }
    let connection = connection.as_mut().ok_or("no connection")?;
    connection.get_mut().write_all(question.as_bytes())?;
    let mut answer = String::new();
    connection.read_line(&mut answer)?;
    let line = answer.strip_suffix('\n').ok_or("cut off")?;
    let mut numbers = line.split(' ').map(str::parse::<usize>);
    let mut number = || numbers.next().ok_or("too few numbers");
    Ok(Place { moves: u32::try_from(number()??)?, x: number()??, y: number()?? })
}

// ---------------------------------------------------------------- the parent
fn main() -> ExitCode {
    report(match role() {
        None => Options::parse(&[("--players", 200), ("--moves", 200)])
            .map_err(Into::into)
            .and_then(|options| run(&options)),
        Some(_) => serve().map(|()| String::new()),
    })
}

fn run(options: &Options) -> Result<String, Box<dyn Error>> {
    let (players, moves) = (options.get("--players"), u32::try_from(options.get("--moves"))?);
    if !(1..=MOST).contains(&players) {
        return Err(format!("--players: 1 to {MOST}").into());
    }
    // Each connection is served by a thread, and so the segment needs places for more threads than
    // usual.
    let world = outlast::Options::new().threads(8_192).anonymous_with(|_: &World| {})?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let at = listener.local_addr()?;
    let shared = world.clone();
    let mut crew = Crew::start(options, options.get("--workers"), move |_, _| {
        let mut command = this_program("server")?;
        command.stdin(Stdio::from(OwnedFd::from(listener.try_clone()?))).share("world", &shared);
        Ok(command)
    })?;

    let (start, done) = (Instant::now(), AtomicUsize::new(0));
    let played = std::thread::scope(|scope| -> Result<Vec<_>, Box<dyn Error>> {
        let done = &done;
        let start = |player| scope.spawn(move || play(player, moves, at, done));
        let threads: Vec<_> = (0..players).map(start).collect();
        while !threads.iter().all(|thread| thread.is_finished()) {
            crew.tend(done.load(Relaxed))?;
            std::thread::sleep(TICK);
        }
        let ends = threads.into_iter().map(|thread| thread.join().map_err(|_| "panicked"));
        ends.map(|end| Ok(end??)).collect()
    })?;
    let took = start.elapsed().as_secs_f64();
    world.stop.set();
    let lost = crew.finish()?;

    // Every player is where its last answer said, and the board says the same.
    let board = *world.board()?;
    for (player, (place, _)) in played.iter().enumerate() {
        if world.place(player) != *place || board[place.y][place.x] != player as u32 + 1 {
            return Err(format!("player {player} is not at {place:?}").into());
        }
    }
    if board != world.derived_board()
        || board.iter().flatten().filter(|p| **p > 0).count() != players
    {
        return Err("the board is wrong".into());
    }
    let connections: usize = played.iter().map(|(_, connections)| connections).sum();
    let (all, mended) = (players * moves as usize, world.mended.load(Relaxed));
    let rate = all as f64 / took;
    Ok(format!(
        "{players} players made {all} moves in {took:.2} s ({rate:.0} a second), and all are in the world; \
         workers lost: {lost}, connected anew: {connections}, board mended: {mended}"
    ))
}

//! A game server of several processes that share the world and one listening socket.
//!
//! ```text
//! cargo run --release --example game_server -- [--players N] [--moves N] [--workers N] [--kill-one-every-ms MS]
//! ```
//!
//! The program starts the servers and plays against them, with 200 scripted players over TCP. The
//! process that accepts a connection serves it. If that process is killed, its players connect
//! again, and another process continues where they were.
//!
//! A move changes two things: the player's word (its place, and the number of its moves) and the
//! board. The word is the truth. It is stored in one instruction, which is the commit of the move.
//! The board can be derived from the words. If a process dies in between, the next owner of the
//! lock gets `OwnerDied`, and derives the board again. A move is answered after its commit. Moves
//! have numbers, so a player that got no answer can ask again.
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
/// The time after which a missing answer counts as a hang.
const TOO_LONG: Duration = Duration::from_secs(30);

/// For each cell, the number of the player there plus one, or 0.
type Board = [[u32; SIDE]; SIDE];

outlast::shared! {
    struct World {
        board: Lock<Board>,
        /// The truth: one `Place` for each player, changed under the board's lock.
        players: [AtomicU64; MOST],
        /// How often a process died in the middle of a move.
        repaired: AtomicU64,
        stop: Event,
    }
}

/// Where a player is, and after how many moves. After 0 moves, it is not on the board.
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

    /// Locks the board. Repairs it if the last owner died.
    fn board(&self) -> Result<LockGuard<'_, Board>, Box<dyn Error>> {
        match self.board.lock() {
            Ok(board) => Ok(board),
            Err(LockError::OwnerDied(mut board)) => {
                // The board may be half changed.
                *board = self.derived_board();
                self.repaired.fetch_add(1, Relaxed);
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

    /// Makes move `number`, unless it has been made already. Returns the place of the player
    /// afterwards. The first move puts the player on the board.
    fn make_move(&self, player: usize, number: u32, way: u8) -> Result<Place, Box<dyn Error>> {
        let mut board = self.board()?;
        let now = self.place(player);
        if number <= now.moves {
            return Ok(now); // the move was made, and its answer was lost
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
            (to.x, to.y) = (now.x, now.y); // the cell is occupied: the player stays
        }
        if now.moves > 0 {
            board[now.y][now.x] = 0;
        }
        // After a kill here, the player is not on the board, and its word has the old place.
        self.players[player].store(to.bits(), Release); // the commit
        board[to.y][to.x] = player as u32 + 1;
        Ok(to)
    }
}

// --------------------------------------------------------------- the servers
fn serve() -> Result<(), Box<dyn Error>> {
    let world = Shared::<World>::inherited("world")?;
    // The listener is this process's standard input.
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

/// Answers each line, `PLAYER NUMBER WAY`, with a line `MOVES X Y`.
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
/// Plays the moves of one player. Returns its last place, and how often it had to reconnect.
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
            // Another number would mean that the world has lost an answered move.
            Ok(answer) if answer.moves == number => {
                place = answer;
                done.fetch_add(1, Relaxed);
                patience = Instant::now() + TOO_LONG;
            }
            Ok(answer) => return Err(format!("player {player}: {answer:?} for {number}")),
            Err(_) if Instant::now() < patience => {
                connection = None; // the server was killed: ask another one
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
    // A thread serves each connection, so the segment needs more thread slots than usual.
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

    // Every player is at the place of its last answer, and the board agrees.
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
    let (all, repaired) = (players * moves as usize, world.repaired.load(Relaxed));
    let rate = all as f64 / took;
    Ok(format!(
        "{players} players made {all} moves in {took:.2} s ({rate:.0} a second), and all are in the world; \
         workers lost: {lost}, reconnected: {connections}, board repaired: {repaired}"
    ))
}

//! A crawler of several processes, for a web site with slow pages, broken pages, and pages that
//! kill their reader.
//!
//! ```text
//! cargo run --release --example crawler -- [--pages N] [--workers N] [--kill-one-every-ms MS]
//! ```
//!
//! The program serves the site itself, by HTTP/1.1 on loopback, and knows the right answer. Jobs
//! are URLs. A worker sends the links of a page before it acknowledges the page. If it is killed in
//! between, another worker reads the page again, and sends the links that are missing. A page may
//! therefore be queued twice, but is never lost. A page that has killed too many workers
//! (`attempts`) is not read any more. The crawl is done when every job is acknowledged, because the
//! jobs that follow from it were sent before.
#![expect(
    clippy::cast_possible_truncation,
    reason = "64 bits are needed anyway, and numbers are small"
)]
mod crew;

use crew::{Crew, Options, TICK, report, role, this_program};
use outlast::{CommandExt as _, FixedQueue, Shared};
use std::collections::BTreeMap;
use std::error::Error;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::ExitCode;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU32, AtomicU64};
use std::time::{Duration, Instant};

/// The number of dead workers after which a page counts as poison. It is larger than
/// `--kill-one-every-ms` alone can explain.
const MOST_ATTEMPTS: u32 = 12;
/// How often a broken page is requested.
const TRIES: u32 = 3;
/// The largest number of URLs of a site.
const MOST_PAGES: usize = 4_096;

// The states of a page.
const UNKNOWN: u32 = 0;
const QUEUED: u32 = 1;
const READ: u32 = 2;
const BROKEN: u32 = 3;
const POISON: u32 = 4;

outlast::plain! {
    struct Url { len: usize, bytes: [u8; 120] }
}

outlast::shared! {
    struct Crawl {
        /// It has room for every page, more than once: the workers that empty the queue also fill
        /// it, and must not wait for room.
        urls: FixedQueue<Url, 4_096>,
        /// A hash table. A URL belongs to the first place that holds its hash.
        hashes: [AtomicU64; MOST_PAGES],
        states: [AtomicU32; MOST_PAGES],
        done: AtomicU64,
    }
}

impl Url {
    fn new(text: &str) -> Option<Self> {
        let mut url = Url { len: text.len(), bytes: [0; 120] };
        url.bytes.get_mut(..text.len())?.copy_from_slice(text.as_bytes());
        Some(url)
    }

    fn text(&self) -> &str {
        std::str::from_utf8(self.bytes.get(..self.len).unwrap_or_default()).unwrap_or_default()
    }
}

impl Crawl {
    /// Returns the state of a page.
    fn state(&self, url: &str) -> Result<&AtomicU32, Box<dyn Error>> {
        let mix = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        let hash = url.bytes().fold(0xcbf2_9ce4_8422_2325, mix).max(1);
        for step in 0..MOST_PAGES {
            let place = (hash as usize + step) % MOST_PAGES;
            match self.hashes[place].compare_exchange(0, hash, AcqRel, Acquire) {
                Ok(_) => return Ok(&self.states[place]),
                Err(other) if other == hash => return Ok(&self.states[place]),
                Err(_) => {}
            }
        }
        Err("the site is too large".into())
    }

    /// Queues a page that is not queued yet. The page is sent first and marked afterwards. In the
    /// other order, a kill in between would lose it.
    fn discover(&self, url: &str) -> Result<(), Box<dyn Error>> {
        let state = self.state(url)?;
        if state.load(Acquire) == UNKNOWN {
            self.urls.send(Url::new(url).ok_or("a long URL")?)?;
            state.compare_exchange(UNKNOWN, QUEUED, Release, Relaxed).ok();
        }
        Ok(())
    }
}

// --------------------------------------------------------------- the workers
fn work() -> Result<(), Box<dyn Error>> {
    let crawl = Shared::<Crawl>::inherited("crawl")?;
    while let Ok(job) = crawl.urls.recv_ack() {
        let url = job.text();
        let state = crawl.state(url)?;
        if state.load(Acquire) <= QUEUED {
            let found = if job.attempts() >= MOST_ATTEMPTS {
                POISON
            } else if let Some(page) = (0..TRIES).find_map(|_| get(url).ok()) {
                understand(&page);
                for link in page.split("href=\"").skip(1).filter_map(|rest| rest.split('"').next())
                {
                    crawl.discover(link)?;
                }
                READ
            } else {
                BROKEN
            };
            state.store(found, Release);
            crawl.done.fetch_add(1, Relaxed);
        }
        job.ack()?;
    }
    Ok(())
}

/// Crashes on a poisonous page, as a parser with a bug would.
fn understand(page: &str) {
    if page.contains("<poison>") {
        std::process::abort();
    }
}

/// Returns the body of a page. Fails if the page does not exist or is not complete.
fn get(url: &str) -> Result<String, Box<dyn Error>> {
    let rest = url.strip_prefix("http://").ok_or("not http")?;
    let (host, path) = rest.split_once('/').ok_or("no path")?;
    let mut stream = TcpStream::connect(host)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let request = format!("GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let (mut answer, mut line, mut length) = (BufReader::new(stream), String::new(), None);
    answer.read_line(&mut line)?;
    if line.split(' ').nth(1) != Some("200") {
        return Err(line.into());
    }
    while !line.trim_end().is_empty() {
        line.clear();
        answer.read_line(&mut line)?;
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = Some(value.trim().parse::<usize>()?);
        }
    }
    let mut body = vec![0; length.ok_or("no length")?];
    answer.read_exact(&mut body)?; // an error if it is cut off
    Ok(String::from_utf8(body)?)
}

// ------------------------------------------------------------------ the site
/// Returns the final state of page `i`.
fn kind(i: usize) -> u32 {
    match i {
        i if i % 37 == 5 || i % 41 == 7 => BROKEN,
        i if i % 101 == 11 => POISON,
        _ => READ,
    }
}

/// Returns the links of page `i`. Two of them make a tree of all pages, so that all would be found
/// if none were broken. The third leads to any page.
fn links(i: usize, pages: usize) -> impl Iterator<Item = usize> {
    [2 * i + 1, 2 * i + 2, i * 7919 % pages].into_iter().filter(move |link| *link < pages)
}

fn answer(mut stream: TcpStream, pages: usize) -> Result<(), Box<dyn Error>> {
    let mut requests = BufReader::new(stream.try_clone()?).lines();
    let request = requests.next().ok_or("nothing asked")??;
    while requests.next().ok_or("cut off")??.is_empty().eq(&false) {} // the header
    let path = request.split(' ').nth(1).ok_or("no path")?;
    let i: usize = path.trim_start_matches("/page/").parse()?;
    let host = stream.local_addr()?;
    let mut body = format!("<h1>Page {i}</h1>");
    for link in links(i, pages) {
        body += &format!("<a href=\"http://{host}/page/{link}\">{link}</a>");
    }
    if kind(i) == POISON {
        body += "<poison>";
    }
    if i % 29 == 3 {
        std::thread::sleep(Duration::from_millis(10)); // a slow page
    }
    let status = if i % 37 == 5 { "500 Internal Server Error" } else { "200 OK" };
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n", body.len());
    let sent = if i % 41 == 7 { body.len() / 2 } else { body.len() }; // or cut off
    stream.write_all(head.as_bytes())?;
    stream.write_all(&body.as_bytes()[..sent])?;
    Ok(())
}

/// Returns all pages that can be reached from the first page, with their final states.
fn expected(pages: usize) -> BTreeMap<usize, u32> {
    let (mut found, mut next) = (BTreeMap::new(), vec![0]);
    while let Some(i) = next.pop() {
        if found.insert(i, kind(i)).is_none() && kind(i) == READ {
            next.extend(links(i, pages));
        }
    }
    found
}

// ---------------------------------------------------------------- the parent
fn main() -> ExitCode {
    report(match role() {
        None => Options::parse(&[("--pages", 800)]).map_err(Into::into).and_then(|o| run(&o)),
        Some(_) => work().map(|()| String::new()),
    })
}

fn run(options: &Options) -> Result<String, Box<dyn Error>> {
    let pages = options.get("--pages");
    if !(1..=MOST_PAGES / 2).contains(&pages) {
        return Err(format!("--pages: 1 to {}", MOST_PAGES / 2).into());
    }
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let host = listener.local_addr()?;
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            std::thread::spawn(move || answer(client, pages).ok());
        }
    });
    let crawl = outlast::Options::new().anonymous_with(|_: &Crawl| {})?;
    let shared = crawl.clone();
    let mut crew = Crew::start(options, options.get("--workers"), move |_, _| {
        let mut command = this_program("worker")?;
        command.share("crawl", &shared);
        Ok(command)
    })?;
    let start = Instant::now();
    crawl.discover(&format!("http://{host}/page/0"))?;
    while !crawl.urls.join_timeout(TICK)? {
        crew.tend(usize::try_from(crawl.done.load(Relaxed))?)?;
    }
    let took = start.elapsed().as_secs_f64();
    crawl.urls.close();
    let lost = crew.finish()?;

    let expected = expected(pages);
    for (i, &kind) in &expected {
        let state = crawl.state(&format!("http://{host}/page/{i}"))?.load(Acquire);
        if state != kind {
            return Err(format!("page {i}: state {state}, not {kind}").into());
        }
    }
    let found = crawl.hashes.iter().filter(|hash| hash.load(Relaxed) != 0).count();
    if found != expected.len() {
        return Err(format!("{found} pages, not {}", expected.len()).into());
    }
    let count = |kind| expected.values().filter(|&&other| other == kind).count();
    Ok(format!(
        "{found} pages in {took:.2} s, as expected: {} read, {} broken, {} poisonous; workers lost: {lost}",
        count(READ),
        count(BROKEN),
        count(POISON)
    ))
}

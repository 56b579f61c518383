//! Measures rivals in turns, so that the state of the machine affects all of them alike.
//!
//! A [`Contest`] gives each rival a short slice, round after round. Each round starts with another
//! rival. Beside every slice it measures how long a cache line takes to the other CPU and back. The
//! CPUs of a virtual machine may be *near* (one cache) or *far*, and this may change within
//! seconds. It changes all figures of two CPUs by a factor of 2 to 5. So samples of the two states
//! are kept apart. A sample is dropped if the state changed meanwhile, and taken again if the
//! kernel gave a CPU to another process meanwhile. The table shows medians, and ratios of samples
//! of the same round.
//!
//! On a busy machine, a higher priority makes fewer samples be taken again. Under a kernel that
//! groups processes by session (`/proc/sys/kernel/sched_autogroup_enabled`), the session needs the
//! priority: `setsid -w bash -c 'echo -20 > /proc/$$/autogroup; cargo bench'`, as root.
//!
//! `cargo bench -- FILTER` runs the contests whose title contains the filter; under `cargo bench --
//! --test` and `cargo test --benches` each rival does one operation.
#![allow(dead_code, clippy::allow_attributes, reason = "each benchmark uses a part of this")]

pub(crate) mod cpu;
pub(crate) mod futex;
pub(crate) mod group;
pub(crate) mod pthread;
pub(crate) mod scenes;

use cpu::Line;
use std::io::Write as _;
use std::time::{Duration, Instant};

/// A slice of something that one thread does alone.
pub(crate) const ALONE: Duration = Duration::from_micros(300);
/// A slice of something that several processes do together.
pub(crate) const TOGETHER: Duration = Duration::from_millis(60);

/// What the command line asks for.
#[derive(Debug)]
pub(crate) struct Bench {
    smoke: bool,
    filter: Option<String>,
}

impl Bench {
    /// Reads the command line as criterion does.
    pub(crate) fn from_args() -> Self {
        let args: Vec<String> = std::env::args().skip(1).collect();
        let has = |flag: &str| args.iter().any(|arg| arg == flag);
        Bench {
            smoke: has("--test") || !has("--bench"),
            filter: args.iter().find(|arg| !arg.starts_with('-')).cloned(),
        }
    }

    /// Whether everything is to be done just once, to see that it works.
    pub(crate) fn is_smoke(&self) -> bool {
        self.smoke
    }

    /// Whether the command line asks for the contest with this title.
    pub(crate) fn wants(&self, title: &str) -> bool {
        self.filter.as_ref().is_none_or(|filter| title.contains(filter.as_str()))
    }

    /// Runs the contest that `enter` sets up, if it is asked for.
    pub(crate) fn contest<'a>(
        &self,
        title: &str,
        slice: Duration,
        rounds: usize,
        enter: impl FnOnce(&mut Contest<'a>),
    ) {
        if self.wants(title) {
            let mut contest = Contest { rivals: Vec::new() };
            enter(&mut contest);
            contest.run(
                title,
                if self.smoke { Effort::Once } else { Effort::Slice(slice) },
                rounds,
            );
        }
    }
}

/// How much a rival is to do for one sample.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Effort {
    /// One operation, or as few as possible.
    Once,
    /// As much as takes about this long.
    Slice(Duration),
}

/// How many operations took how long.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outcome {
    pub(crate) operations: u64,
    pub(crate) time: Duration,
    /// Others used a CPU meanwhile.
    pub(crate) disturbed: bool,
}

impl Outcome {
    fn nanoseconds(self) -> f64 {
        self.time.as_secs_f64() * 1e9 / self.operations.max(1) as f64
    }
}

/// One of several ways to do the same thing.
struct Rival<'a> {
    name: String,
    bar: Option<f64>,
    limit: Option<Duration>,
    sample: Box<dyn FnMut(Effort) -> Outcome + 'a>,
    samples: Vec<Sample>,
}

/// Nanoseconds for one operation, and in which state of the line it was taken.
#[derive(Clone, Copy, Debug)]
struct Sample {
    nanoseconds: f64,
    state: Option<Line>,
}

/// Rivals that are measured in turns. The others are compared with the first one.
pub(crate) struct Contest<'a> {
    rivals: Vec<Rival<'a>>,
}

impl<'a> Contest<'a> {
    /// Enters a rival whose operations are counted by itself.
    pub(crate) fn rival(
        &mut self,
        name: &str,
        sample: impl FnMut(Effort) -> Outcome + 'a,
    ) -> &mut Self {
        let sample = Box::new(sample);
        self.rivals.push(Rival {
            name: name.into(),
            bar: None,
            limit: None,
            sample,
            samples: Vec::new(),
        });
        self
    }

    /// Enters a rival that does about as many operations as it is told.
    pub(crate) fn counted(
        &mut self,
        name: &str,
        mut run: impl FnMut(u64) -> Outcome + 'a,
    ) -> &mut Self {
        let mut operations = 0;
        self.rival(name, move |effort| {
            let Effort::Slice(slice) = effort else { return run(1) };
            if operations == 0 {
                operations = 16;
                while run(operations).time < slice / 2 {
                    operations *= 2;
                }
            }
            run(operations)
        })
    }

    /// Enters a rival that one thread runs alone.
    pub(crate) fn alone(&mut self, name: &str, mut run: impl FnMut(u64) + 'a) -> &mut Self {
        self.counted(name, move |operations| {
            run(operations / 16);
            let before = cpu::involuntary_switches();
            let start = Instant::now();
            run(operations);
            let time = start.elapsed();
            Outcome { operations, time, disturbed: cpu::involuntary_switches() != before }
        })
    }

    /// Sets how much the first rival may cost at most, in units of the rival entered last.
    pub(crate) fn bar(&mut self, at_most: f64) {
        if let Some(last) = self.rivals.last_mut() {
            last.bar = Some(at_most);
        }
    }

    /// Sets how much the rival entered last may cost at most.
    pub(crate) fn limit(&mut self, at_most: Duration) {
        if let Some(last) = self.rivals.last_mut() {
            last.limit = Some(at_most);
        }
    }

    fn run(mut self, title: &str, effort: Effort, rounds: usize) {
        for rival in &mut self.rivals {
            (rival.sample)(effort); // to warm up, and to find out how much fits a slice
        }
        if matches!(effort, Effort::Once) {
            return say(&format!("{title}: works ({} rivals)\n", self.rivals.len()));
        }
        let mut lines = Vec::new();
        let mut before = cpu::probe();
        for round in 0..rounds {
            for turn in 0..self.rivals.len() {
                let i = (round + turn) % self.rivals.len();
                let nanoseconds = self.rivals[i].undisturbed(effort).nanoseconds();
                let after = cpu::probe();
                let state = if before.state() == after.state() { before.state() } else { None };
                self.rivals[i].samples.push(Sample { nanoseconds, state });
                lines.push(after.nanoseconds());
                before = after;
            }
        }
        self.report(title, &mut lines);
    }

    fn report(&self, title: &str, lines: &mut [f64]) {
        let (median, low, high) = spread(lines);
        let mut text =
            format!("\n{title}\n  line there and back {median:.0} ns [{low:.0}..{high:.0}]\n");
        for state in [Line::Near, Line::Far, Line::Alone] {
            for (i, rival) in self.rivals.iter().enumerate() {
                let mut times = rival.times(state);
                if times.len() < 3 {
                    continue;
                }
                let n = times.len();
                let (median, low, high) = spread(&mut times);
                let [median_text, low, high] = [median, low, high].map(duration);
                text.push_str(&format!(
                    "  {:5} {:34} {median_text:>8} [{low}..{high}] ({n}) {:>9}/s",
                    state.name(),
                    rival.name,
                    rate(median)
                ));
                if i > 0
                    && let Some(ratio) = self.ratio(i, state)
                {
                    text.push_str(&format!("  x {ratio:.2}"));
                    if let Some(bar) = rival.bar {
                        text.push_str(&format!(" (bar {bar}: {})", verdict(ratio, bar)));
                    }
                }
                if let Some(limit) = rival.limit.map(|limit| limit.as_secs_f64() * 1e9) {
                    let verdict = verdict(median, limit);
                    text.push_str(&format!("  (at most {}: {verdict})", duration(limit)));
                }
                text.push('\n');
            }
        }
        say(&text);
    }

    /// The median of the first rival's time, in units of the time of rival `i` in the same round.
    fn ratio(&self, i: usize, state: Line) -> Option<f64> {
        let (ours, theirs) = (&self.rivals[0].samples, &self.rivals[i].samples);
        let both = ours.iter().zip(theirs).filter(|(a, b)| [a.state, b.state] == [Some(state); 2]);
        let mut ratios: Vec<f64> = both.map(|(a, b)| a.nanoseconds / b.nanoseconds).collect();
        (ratios.len() >= 3).then(|| spread(&mut ratios).0)
    }
}

fn verdict(figure: f64, bar: f64) -> &'static str {
    if figure <= bar { "kept" } else { "MISSED" }
}

/// So often a sample is taken anew if others had used a CPU. Then it is kept: better some noise
/// than no figure.
const TRIES: usize = 8;

impl Rival<'_> {
    fn undisturbed(&mut self, effort: Effort) -> Outcome {
        let mut outcome = (self.sample)(effort);
        for _ in 1..TRIES {
            if !outcome.disturbed {
                break;
            }
            outcome = (self.sample)(effort);
        }
        outcome
    }

    fn times(&self, state: Line) -> Vec<f64> {
        let same = self.samples.iter().filter(|sample| sample.state == Some(state));
        same.map(|sample| sample.nanoseconds).collect()
    }
}

/// Median, least and greatest.
pub(crate) fn spread(numbers: &mut [f64]) -> (f64, f64, f64) {
    numbers.sort_by(f64::total_cmp);
    match &*numbers {
        [] => (f64::NAN, f64::NAN, f64::NAN),
        [least, .., greatest] => (numbers[numbers.len() / 2], *least, *greatest),
        [only] => (*only, *only, *only),
    }
}

/// A time, with three digits that matter.
pub(crate) fn duration(nanoseconds: f64) -> String {
    scaled(nanoseconds, &[(1e9, " s"), (1e6, " ms"), (1e3, " us"), (1.0, " ns")])
}

/// How often something that takes so long can be done in a second.
fn rate(nanoseconds: f64) -> String {
    scaled(1e9 / nanoseconds, &[(1e6, " M"), (1e3, " k"), (1.0, " ")])
}

fn scaled(number: f64, units: &[(f64, &str)]) -> String {
    let fitting = units.iter().find(|(unit, _)| number >= *unit).or(units.last());
    let Some((unit, name)) = fitting else { return String::new() };
    let shown = number / unit;
    let digits = if shown >= 100.0 {
        0
    } else if shown >= 10.0 {
        1
    } else {
        2
    };
    format!("{shown:.digits$}{name}")
}

/// Writes to standard output, whether it can be written to or not.
pub(crate) fn say(text: &str) {
    std::io::stdout().lock().write_all(text.as_bytes()).unwrap_or_default();
}

//! What to ask the store for, and when. Pure: questions and pages go in, requests come out.
//!
//! A directory can be listed by itself, which is one request for a thousand of its names, or together with everything around it,
//! by a *sweep*: a listing without delimiter that begins at the directory in question and goes on through its neighbours in
//! key order, which is the order in which trees are walked. One page of a sweep holds a thousand keys in however many directories.
//!
//! When. The first question below a directory says nothing, the second (about another child) says that somebody goes from child
//! to child: a sweep begins at the place of the question and answers it by its first page. Whoever asks about a place that a
//! sweep will soon reach waits for it; who asks about a place far away begins another one there, or lists only that directory
//! when sweeps have not been paying.
//!
//! How far. Sweeping ahead costs credits. There are a few to begin with; a page that answers a question about a directory in it
//! buys more, twice as many each time, 64 at most. So a walk is soon followed at the speed of the store and left alone when
//! it stops, random questions in a tree of few pages, as far as that can be told, fill it within a few round trips, and random questions in a huge one soon cost one
//! request each. A large directory in the way that nobody asks about is entered no further than there are credits; the
//! sweep stays there, and the next question behind it is far away and begins another.
//!
//! Sweeps over one base know where each of them began. One that comes to where another began ends, and that one goes on
//! for both, so no page is asked for twice.

use std::collections::HashMap;

use oss::ErrorKind;

use super::absorb::{Absorbed, DEPTHS};
use super::question::{Gap, Question};
use super::table::Dir;
use crate::fault::Fault;

/// What can be listed before any of it has paid, in pages.
const ENDOWMENT: u32 = 8;

/// The most pages ahead of questions.
const MOST_AHEAD: u32 = 64;

/// How many pages away is soon.
const SOON: u64 = 2;

/// How many siblings away is soon while a sweep's first page is under way and nothing is known of its speed.
const SOON_AT_FIRST: usize = 8;

/// A sweep that left no directory behind for so many pages is inside a large one.
const STUCK: u32 = 2;

/// Out of so many questions that could not be answered by a sweep one begins one, to see whether it pays by now.
const TRIAL: u32 = 16;

/// So many single names of one directory are asked for before it is listed on beside them.
const PROBES: u32 = 4;

/// Sweeps that are remembered, those that have ended included.
const MOST_SWEEPS: usize = 64;

/// After so many sweeps were refused there are no more: a bucket's rules can allow listing only below some prefixes.
const MOST_FAILURES: u32 = 3;

/// So many pages without anything new are the end: a server that goes on like that goes on for ever.
const MOST_IDLE: u32 = 64;

/// Something that is being listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Job {
    /// A sweep.
    Sweep(u32),
    /// One directory.
    Own(Dir),
}

/// A page to be asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetch {
    /// What it belongs to.
    pub job: Job,
    /// The directory whose prefix is listed.
    pub base: Dir,
    /// Behind which key; from the beginning when absent.
    pub from: Option<String>,
    /// How the store calls the place where the page before ended.
    pub token: Option<String>,
    /// By what directories remember that this page completed them: sweep and number of page.
    pub swept: u64,
}

/// How a page ended.
#[derive(Debug)]
pub struct Arrived {
    /// What it brought.
    pub absorbed: Absorbed,
    /// Where the next one begins; none after the last.
    pub token: Option<String>,
    /// There is room for more names than those that were asked for.
    pub room: bool,
}

#[derive(Debug)]
struct Sweep {
    id: u32,
    /// The mounted location it goes through.
    root: Option<u32>,
    base: Dir,
    base_prefix: String,
    /// Behind which key it began, or one that it has taken over.
    begin: Option<String>,
    /// Behind which key it began itself.
    own_begin: Option<String>,
    /// The last key it has seen.
    cursor: Option<String>,
    token: Option<String>,
    pages: u32,
    passed: [u32; DEPTHS],
    /// Pages since it left a directory behind.
    stuck: u32,
    idle: u32,
    running: bool,
    ended: bool,
    /// Somebody waits for it.
    wanted: bool,
    /// It goes on to the end, whoever asks.
    whole: bool,
}

#[derive(Debug, Default)]
struct Own {
    cursor: Option<String>,
    token: Option<String>,
    running: bool,
    probes: u32,
    credits: u32,
    idle: u32,
    /// The store does not begin behind a key but at the front, so the only way on is its token.
    from_front: bool,
    failures: u64,
    fault: Option<Fault>,
}

/// Everything that is being listed.
#[derive(Debug)]
pub struct Plan {
    sweeps: Vec<Sweep>,
    own: HashMap<Dir, Own>,
    next: u32,
    credits: u32,
    gain: u32,
    /// Questions that no sweep could answer.
    misses: u32,
    last_hit: u64,
    failures: u32,
    /// A sweep has failed, and no page has come since.
    broken_off: bool,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            sweeps: Vec::new(),
            own: HashMap::new(),
            next: 1,
            credits: ENDOWMENT,
            gain: 1,
            misses: 0,
            last_hit: 0,
            failures: 0,
            broken_off: false,
        }
    }
}

impl Sweep {
    fn new(id: u32, root: Option<u32>, base: Dir, base_prefix: String, begin: Option<String>) -> Self {
        Self {
            id,
            root,
            base,
            base_prefix,
            own_begin: begin.clone(),
            cursor: begin.clone(),
            begin,
            token: None,
            pages: 0,
            passed: [0; DEPTHS],
            stuck: 0,
            idle: 0,
            running: false,
            ended: false,
            wanted: false,
            whole: false,
        }
    }

    fn fetch(&mut self) -> Fetch {
        self.running = true;
        Fetch {
            job: Job::Sweep(self.id),
            base: self.base,
            from: self.cursor.clone(),
            token: self.token.clone(),
            swept: u64::from(self.id) << 32 | u64::from(self.pages + 1),
        }
    }

    /// Whether a question will be answered by it soon.
    fn is_near(&self, question: &Question, gap: &dyn Fn(Dir, &str, Dir) -> Option<Gap>) -> bool {
        let prefix = question.prefix.as_str();
        // Locations of one mount can have the same keys, and places inside one another.
        if self.ended || self.root != question.root || !prefix.starts_with(&self.base_prefix) {
            return false;
        }
        let Some(cursor) = self.cursor.as_deref() else {
            // At the very beginning: only the base itself comes at once.
            return prefix == self.base_prefix;
        };
        if let Some(rest) = cursor.strip_prefix(prefix) {
            // Inside, and there since its beginning: then it is as good as a listing of its own, but for subdirectories.
            let whole = self.own_begin.as_deref().is_none_or(|begin| begin <= prefix);
            return whole && (!rest.contains('/') || self.stuck == 0);
        }
        if cursor > prefix || self.stuck >= STUCK {
            return false;
        }
        let Some(gap) = gap(self.base, cursor, question.dir) else { return false };
        if self.pages == 0 {
            return gap.siblings <= SOON_AT_FIRST;
        }
        let passed = u64::from(self.passed.get(gap.depth).copied().unwrap_or(0).max(1));
        u64::from(self.pages) * gap.siblings as u64 <= SOON * passed
    }

    /// Whether it has been, or was begun, at this place.
    fn covers(&self, base: Dir, prefix: &str) -> bool {
        let begun = self.begin.as_deref().is_none_or(|begin| begin <= prefix);
        let reached = self.ended || self.cursor.as_deref().is_some_and(|cursor| prefix <= cursor);
        self.base == base && begun && reached
    }
}

impl Plan {
    /// Somebody needs what is in a directory and will wait for it. Returns the requests to make now; when there are none, some are
    /// under way, and the question is asked again when a page has come. `gap` tells what lies between a key and a directory
    /// below a base.
    pub fn ask(&mut self, question: &Question, gap: &dyn Fn(Dir, &str, Dir) -> Option<Gap>) -> Vec<Fetch> {
        // One that stands still and may not go on is of no use to anybody.
        let usable = |sweep: &&mut Sweep| (sweep.running || question.sweepable) && sweep.is_near(question, gap);
        if let Some(sweep) = self.sweeps.iter_mut().find(usable) {
            sweep.wanted = true;
            return if sweep.running { Vec::new() } else { vec![sweep.fetch()] };
        }
        let mut fetches = Vec::new();
        if let Some((base, base_prefix)) = self.base_to_sweep(question) {
            let begin = question.from_inside.then(|| question.prefix.clone());
            let sweep = self.begin(question.root, base, base_prefix, begin);
            sweep.wanted = question.from_inside;
            fetches.push(sweep.fetch());
            if question.from_inside {
                return fetches;
            }
        }
        let own = self.own.entry(question.dir).or_default();
        if !own.running {
            own.jump(question.reached.as_ref());
            fetches.push(own.fetch(question.dir));
        }
        fetches
    }

    /// Where a new sweep may begin because of this question.
    fn base_to_sweep(&mut self, question: &Question) -> Option<(Dir, String)> {
        let (base, base_prefix) = question.base.as_ref()?;
        let begun = question.reached.is_some() || self.own.contains_key(&question.dir);
        if !question.sweepable || begun || self.failures >= MOST_FAILURES {
            return None;
        }
        let there = |sweep: &Sweep| {
            let anywhere = !question.from_inside && sweep.base == *base;
            anywhere || sweep.covers(*base, &question.prefix)
        };
        if self.sweeps.iter().any(there) || !self.may_begin(question) {
            return None;
        }
        Some((*base, base_prefix.clone()))
    }

    fn may_begin(&mut self, question: &Question) -> bool {
        self.misses += 1;
        // While nothing comes, a question is answered by its directory's own listing, which hears what is wrong; sweep after sweep would
        // begin and fail, and nobody would be told.
        if self.is_small(question) && !self.broken_off {
            self.earn();
        } else {
            self.gain = (self.gain / 2).max(1);
        }
        if self.credits == 0 && !self.misses.is_multiple_of(TRIAL) {
            return false;
        }
        self.credits = self.credits.saturating_sub(1);
        true
    }

    /// Whether everything around a question seems to be few pages, going by what sweeps have passed there.
    fn is_small(&self, question: &Question) -> bool {
        let Some((base, _)) = &question.base else { return false };
        let there = self.sweeps.iter().filter(|sweep| sweep.base == *base);
        let (pages, passed) = there.fold((0_u64, 0_u64), |(pages, passed), sweep| {
            (pages + u64::from(sweep.pages), passed + u64::from(sweep.passed[0]))
        });
        passed > 0 && (question.base_names as u64).saturating_mul(pages) <= passed * u64::from(MOST_AHEAD)
    }

    fn begin(&mut self, root: Option<u32>, base: Dir, base_prefix: String, begin: Option<String>) -> &mut Sweep {
        if self.sweeps.len() >= MOST_SWEEPS
            && let Some(at) = self.sweeps.iter().position(|sweep| !sweep.running && !sweep.whole)
        {
            self.sweeps.remove(at);
        }
        let id = self.next;
        self.next = self.next.wrapping_add(1).max(1);
        self.sweeps.push(Sweep::new(id, root, base, base_prefix, begin));
        let last = self.sweeps.len() - 1;
        &mut self.sweeps[last]
    }

    /// Whether a sweep that is under way has just come into a directory of a location, so that its next page is likely to hold the
    /// rest of it.
    pub fn is_passing(&self, root: Option<u32>, prefix: &str) -> bool {
        self.sweeps.iter().filter(|sweep| sweep.root == root).any(|sweep| {
            let inside = sweep.cursor.as_deref().and_then(|cursor| cursor.strip_prefix(prefix));
            sweep.running && sweep.stuck == 0 && inside.is_some_and(|rest| !rest.contains('/'))
        })
    }

    /// Lists everything below the directory in question to the end, whoever asks, by a sweep from the beginning and one from each of
    /// `begins`.
    pub fn whole(&mut self, question: &Question, begins: Vec<String>) -> Vec<Fetch> {
        if self.failures >= MOST_FAILURES {
            return Vec::new();
        }
        let begins = std::iter::once(None).chain(begins.into_iter().map(Some));
        let begun = begins.map(|begin| {
            let sweep = self.begin(question.root, question.dir, question.prefix.clone(), begin);
            sweep.whole = true;
            sweep.fetch()
        });
        begun.collect()
    }

    /// Whether something is being listed to the end below a directory.
    pub fn is_whole_under_way(&self, base: Dir) -> bool {
        self.sweeps.iter().any(|sweep| sweep.base == base && sweep.whole && sweep.running)
    }

    /// A directory's own listing was begun, or gone on with, elsewhere: up to `cursor`, and `token` is what the rest is asked for with,
    /// if there is any.
    pub fn begun(&mut self, dir: Dir, cursor: Option<String>, token: Option<String>) {
        match token {
            Some(_) => drop(self.own.insert(dir, Own { cursor, token, ..Own::default() })),
            None => drop(self.own.remove(&dir)),
        }
    }

    /// A single name of a directory is asked for by itself. When that happens again and again, the directory is listed on, one
    /// page for each such name.
    pub fn probed(&mut self, dir: Dir, reached: Option<String>) -> Option<Fetch> {
        let own = self.own.entry(dir).or_default();
        own.probes = own.probes.saturating_add(1);
        if own.probes <= PROBES {
            return None;
        }
        if own.running {
            own.credits = (own.credits + 1).min(MOST_AHEAD);
            return None;
        }
        own.jump(reached.as_ref());
        Some(own.fetch(dir))
    }

    /// Whether a single name of a directory was asked for by itself.
    pub fn was_probed(&self, dir: Dir) -> bool {
        self.own.get(&dir).is_some_and(|own| own.probes > 0)
    }

    /// A question was answered by what this page of a sweep had brought.
    pub fn hit(&mut self, swept: u64, room: bool) -> Option<Fetch> {
        if swept == 0 || swept == self.last_hit {
            return None;
        }
        self.last_hit = swept;
        self.earn();
        let id = u32::try_from(swept >> 32).ok()?;
        self.go_on(id, room)
    }

    fn earn(&mut self) {
        self.gain = (self.gain * 2).min(MOST_AHEAD);
        self.credits = (self.credits + self.gain).min(MOST_AHEAD);
    }

    /// Lets a sweep go on if somebody waits for it or there are credits.
    fn go_on(&mut self, id: u32, room: bool) -> Option<Fetch> {
        let sweep = self.sweeps.iter_mut().find(|sweep| sweep.id == id)?;
        if sweep.running || sweep.ended || !room {
            return None;
        }
        if !sweep.wanted && !sweep.whole {
            self.credits = self.credits.checked_sub(1)?;
        }
        Some(sweep.fetch())
    }

    /// A page has come. Returns the request to make next.
    pub fn arrived(&mut self, fetch: &Fetch, arrived: Arrived) -> Option<Fetch> {
        self.broken_off = false;
        match fetch.job {
            Job::Own(dir) => self.own_arrived(dir, arrived),
            Job::Sweep(id) => self.sweep_arrived(id, fetch.swept, arrived),
        }
    }

    fn own_arrived(&mut self, dir: Dir, arrived: Arrived) -> Option<Fetch> {
        let own = self.own.get_mut(&dir)?;
        own.running = false;
        if arrived.token.is_none() {
            self.own.remove(&dir);
            return None;
        }
        own.advance(arrived.absorbed.last, arrived.token);
        if own.idle >= MOST_IDLE {
            own.fail(does_not_advance());
            return None;
        }
        own.credits = own.credits.checked_sub(1).filter(|_| arrived.room)?;
        Some(own.fetch(dir))
    }

    fn sweep_arrived(&mut self, id: u32, swept: u64, arrived: Arrived) -> Option<Fetch> {
        let at = self.sweeps.iter().position(|sweep| sweep.id == id)?;
        // That a sweep answers the question it began with is no sign that it pays.
        let itself = u32::from(self.sweeps[at].pages == 0);
        if arrived.absorbed.answered > itself && swept != self.last_hit {
            self.last_hit = swept;
            self.earn();
        }
        let sweep = &mut self.sweeps[at];
        sweep.running = false;
        sweep.wanted = false;
        sweep.pages += 1;
        let advanced = arrived.absorbed.last.is_some() && arrived.absorbed.last != sweep.cursor;
        sweep.idle = if advanced { 0 } else { sweep.idle + 1 };
        for (sum, passed) in sweep.passed.iter_mut().zip(arrived.absorbed.passed) {
            *sum += passed;
        }
        let left_one = arrived.absorbed.passed.iter().any(|&passed| passed > 0);
        sweep.stuck = if left_one { 0 } else { sweep.stuck + 1 };
        if advanced {
            sweep.cursor = arrived.absorbed.last;
        }
        sweep.ended = arrived.token.is_none();
        sweep.token = arrived.token;
        if sweep.idle >= MOST_IDLE {
            self.sweep_failed(id, &does_not_advance());
            return None;
        }
        let id = self.join(at).unwrap_or(id);
        self.go_on(id, arrived.room)
    }

    /// Ends a sweep that has come to where another began. Returns that one.
    fn join(&mut self, at: usize) -> Option<u32> {
        let sweep = &self.sweeps[at];
        if sweep.ended {
            return None;
        }
        let other = self.sweeps.iter().position(|other| {
            other.id != sweep.id
                && other.base == sweep.base
                && other.begin > sweep.begin
                && other.begin <= sweep.cursor
                && (other.ended || other.cursor >= sweep.cursor)
        })?;
        let (begin, wanted, whole) = (sweep.begin.clone(), sweep.wanted, sweep.whole);
        let joined = &mut self.sweeps[other];
        joined.begin = begin;
        joined.wanted |= wanted;
        joined.whole |= whole;
        let id = joined.id;
        self.sweeps.remove(at);
        Some(id)
    }

    /// A page could not be had.
    pub fn failed(&mut self, fetch: &Fetch, fault: Fault) {
        match fetch.job {
            Job::Own(dir) => {
                if let Some(own) = self.own.get_mut(&dir) {
                    own.fail(fault);
                }
            }
            Job::Sweep(id) => self.sweep_failed(id, &fault),
        }
    }

    fn sweep_failed(&mut self, id: u32, fault: &Fault) {
        // Those who wait list their directories by themselves, and hear what is wrong if that fails, too.
        self.sweeps.retain(|sweep| sweep.id != id);
        self.credits = 0;
        self.gain = 1;
        self.broken_off = true;
        // An outage passes; rules and habits of a store do not.
        let passes = match fault {
            Fault::Store(error) => match error.kind() {
                ErrorKind::Unavailable => !error.is_lasting(),
                ErrorKind::Throttled { .. } => true,
                _ => false,
            },
            _ => false,
        };
        self.failures += u32::from(!passes);
    }

    /// How often a directory's own listing has failed, and how it did the last time.
    pub fn failures(&self, dir: Dir) -> (u64, Option<Fault>) {
        self.own.get(&dir).map_or((0, None), |own| (own.failures, own.fault.clone()))
    }
}

impl Own {
    fn fetch(&mut self, dir: Dir) -> Fetch {
        self.running = true;
        Fetch { job: Job::Own(dir), base: dir, from: self.cursor.clone(), token: self.token.clone(), swept: 0 }
    }

    /// Goes on from where a sweep has come to, if that is further on.
    fn jump(&mut self, reached: Option<&String>) {
        if reached > self.cursor.as_ref() && !(self.from_front && self.token.is_some()) {
            (self.cursor, self.token) = (reached.cloned(), None);
        }
    }

    fn advance(&mut self, last: Option<String>, token: Option<String>) {
        self.from_front |= self.token.is_none() && last.is_some() && last < self.cursor;
        if last.is_some() && last != self.cursor {
            self.cursor = last;
            self.idle = 0;
        } else {
            self.idle += 1;
        }
        self.token = token;
    }

    fn fail(&mut self, fault: Fault) {
        self.running = false;
        self.credits = 0;
        self.idle = 0;
        self.failures += 1;
        self.fault = Some(fault);
    }
}

/// What a listing that goes on without anything new ends with.
pub fn does_not_advance() -> Fault {
    Fault::Internal("the store's listing does not advance (page after page without anything new)".to_owned())
}

#[cfg(test)]
mod tests;

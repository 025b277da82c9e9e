//! MD5 of several bodies at once.
//!
//! MD5 is the one checksum that every S3 has, and the slowest there is: each of its steps waits for the one before, so that a processor
//! does 0.65 GB of it in a second and has most of its parts idle meanwhile. What helps is to hash several bodies side by side, one in
//! each lane of a vector: eight take little longer than one. A transfer in parts has as many bodies under way.
//!
//! Bodies wait in a queue. One thread takes up to eight and does some of each in turn; whenever one is done the next takes its lane. While
//! there are few, bodies cost what they always did; the more there are, the less each.
//!
//! Where the processor has no vectors of this kind, each body is hashed alone.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use md5::{Digest as _, Md5};
use tokio::sync::oneshot;

/// How many bodies are hashed at once.
const LANES: usize = 8;

/// The length of a block of MD5 in bytes.
const BLOCK: usize = 64;

/// The most blocks that are done before it is looked whether a body has come for a lane that is free.
const STRIDE: usize = 1024;

/// What hashing begins with.
const INITIAL: [u32; 4] = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476];

/// The MD5 of a body, computed on a thread where it may take its time. All zeros when the runtime is ending.
pub(crate) async fn md5(body: Bytes) -> [u8; 16] {
    if has_lanes() {
        let (done, sum) = oneshot::channel();
        let begins = {
            let mut queue = queue();
            queue.waiting.push_back(Job { body: body.clone(), done });
            !std::mem::replace(&mut queue.working, true)
        };
        if begins {
            let working = Working { over: false };
            tokio::task::spawn_blocking(|| work(working));
        }
        if let Ok(sum) = sum.await {
            return sum;
        }
        // The thread was of a runtime that has ended.
    }
    tokio::task::spawn_blocking(move || Md5::digest(&body).into()).await.unwrap_or_default()
}

/// What has to be hashed.
struct Queue {
    waiting: VecDeque<Job>,
    /// A thread is at it.
    working: bool,
}

struct Job {
    body: Bytes,
    done: oneshot::Sender<[u8; 16]>,
}

static QUEUE: Mutex<Queue> = Mutex::new(Queue { waiting: VecDeque::new(), working: false });

fn queue() -> MutexGuard<'static, Queue> {
    QUEUE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whoever is at it. Also when it never came to that, as under a runtime that is ending, others can be afterwards.
struct Working {
    /// It has said so itself.
    over: bool,
}

impl Drop for Working {
    fn drop(&mut self) {
        if !self.over {
            let mut queue = queue();
            queue.working = false;
            // Those who wait see it by that and help themselves.
            queue.waiting.clear();
        }
    }
}

/// A body in a lane.
struct Lane {
    job: Job,
    state: [u32; 4],
    /// Blocks of the body that are done.
    done: usize,
    /// What is behind its last whole block, with the padding: one block or two.
    tail: [u8; 2 * BLOCK],
    tail_blocks: usize,
}

impl Lane {
    fn new(job: Job) -> Self {
        let length = job.body.len();
        let rest = &job.body[length / BLOCK * BLOCK..];
        let mut tail = [0; 2 * BLOCK];
        tail[..rest.len()].copy_from_slice(rest);
        tail[rest.len()] = 0x80;
        let tail_blocks = if rest.len() < BLOCK - 8 { 1 } else { 2 };
        let bits = u64::try_from(length).unwrap_or(u64::MAX).wrapping_mul(8);
        tail[tail_blocks * BLOCK - 8..tail_blocks * BLOCK].copy_from_slice(&bits.to_le_bytes());
        Self { job, state: INITIAL, done: 0, tail, tail_blocks }
    }

    /// The blocks that follow and lie one behind the other; none when all are done.
    fn next(&self) -> &[u8] {
        let whole = self.job.body.len() / BLOCK;
        if self.done < whole {
            &self.job.body[self.done * BLOCK..whole * BLOCK]
        } else {
            &self.tail[(self.done - whole) * BLOCK..self.tail_blocks * BLOCK]
        }
    }

    fn finish(self) {
        let mut sum = [0; 16];
        for (bytes, word) in sum.chunks_exact_mut(4).zip(self.state) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        // Whoever asked may have gone.
        let _ = self.job.done.send(sum);
    }
}

/// Hashes until nothing is left.
fn work(mut working: Working) {
    let mut lanes: [Option<Lane>; LANES] = Default::default();
    loop {
        {
            let mut queue = queue();
            for lane in lanes.iter_mut().filter(|lane| lane.is_none()) {
                *lane = queue.waiting.pop_front().map(Lane::new);
            }
            if lanes.iter().all(Option::is_none) {
                // Under the lock, so that whoever comes from now on begins anew.
                queue.working = false;
                working.over = true;
                return;
            }
        }
        advance(&mut lanes);
        for lane in &mut lanes {
            if lane.as_ref().is_some_and(|lane| lane.next().is_empty())
                && let Some(lane) = lane.take()
            {
                lane.finish();
            }
        }
    }
}

/// Does as many blocks of each lane as all that are taken have, at most [`STRIDE`].
fn advance(lanes: &mut [Option<Lane>; LANES]) {
    let blocks = lanes.iter().flatten().map(|lane| lane.next().len() / BLOCK).min().unwrap_or(0).min(STRIDE);
    let mut states = [[0; LANES]; 4];
    let any = lanes.iter().flatten().next().map_or(&[][..], Lane::next);
    // A lane that is free does what another does, for nothing.
    let mut data = [any; LANES];
    for (number, lane) in lanes.iter().enumerate() {
        if let Some(lane) = lane {
            data[number] = lane.next();
            for (words, word) in states.iter_mut().zip(lane.state) {
                words[number] = word;
            }
        }
    }
    compress(&mut states, &data.map(|data| &data[..blocks * BLOCK]));
    for (number, lane) in lanes.iter_mut().enumerate() {
        if let Some(lane) = lane {
            lane.done += blocks;
            for (words, word) in states.iter().zip(&mut lane.state) {
                *word = words[number];
            }
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn has_lanes() -> bool {
    false
}

#[cfg(not(target_arch = "x86_64"))]
fn compress(_states: &mut [[u32; LANES]; 4], _data: &[&[u8]; LANES]) {}

#[cfg(target_arch = "x86_64")]
use x86::{compress, has_lanes};

/// The function of MD5 in vectors of eight words.
#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m256i, _mm256_add_epi32, _mm256_and_si256, _mm256_andnot_si256, _mm256_extract_epi32, _mm256_or_si256,
        _mm256_set_epi32, _mm256_set1_epi32, _mm256_slli_epi32, _mm256_srli_epi32, _mm256_xor_si256,
    };

    use super::{BLOCK, LANES};

    /// The sines of RFC 1321.
    const SINES: [u32; 64] = [
        0xd76a_a478,
        0xe8c7_b756,
        0x2420_70db,
        0xc1bd_ceee,
        0xf57c_0faf,
        0x4787_c62a,
        0xa830_4613,
        0xfd46_9501,
        0x6980_98d8,
        0x8b44_f7af,
        0xffff_5bb1,
        0x895c_d7be,
        0x6b90_1122,
        0xfd98_7193,
        0xa679_438e,
        0x49b4_0821,
        0xf61e_2562,
        0xc040_b340,
        0x265e_5a51,
        0xe9b6_c7aa,
        0xd62f_105d,
        0x0244_1453,
        0xd8a1_e681,
        0xe7d3_fbc8,
        0x21e1_cde6,
        0xc337_07d6,
        0xf4d5_0d87,
        0x455a_14ed,
        0xa9e3_e905,
        0xfcef_a3f8,
        0x676f_02d9,
        0x8d2a_4c8a,
        0xfffa_3942,
        0x8771_f681,
        0x6d9d_6122,
        0xfde5_380c,
        0xa4be_ea44,
        0x4bde_cfa9,
        0xf6bb_4b60,
        0xbebf_bc70,
        0x289b_7ec6,
        0xeaa1_27fa,
        0xd4ef_3085,
        0x0488_1d05,
        0xd9d4_d039,
        0xe6db_99e5,
        0x1fa2_7cf8,
        0xc4ac_5665,
        0xf429_2244,
        0x432a_ff97,
        0xab94_23a7,
        0xfc93_a039,
        0x655b_59c3,
        0x8f0c_cc92,
        0xffef_f47d,
        0x8584_5dd1,
        0x6fa8_7e4f,
        0xfe2c_e6e0,
        0xa301_4314,
        0x4e08_11a1,
        0xf753_7e82,
        0xbd3a_f235,
        0x2ad7_d2bb,
        0xeb86_d391,
    ];

    pub(super) fn has_lanes() -> bool {
        is_x86_feature_detected!("avx2")
    }

    /// Takes all of `data`, which is equally long in all lanes and whole blocks, into the states. Only where there are lanes.
    pub(super) fn compress(states: &mut [[u32; LANES]; 4], data: &[&[u8]; LANES]) {
        if has_lanes() {
            // SAFETY: the processor has AVX2, which is all that the function asks for.
            unsafe { compress_avx2(states, data) }
        }
    }

    #[target_feature(enable = "avx2")]
    fn vector(words: [u32; LANES]) -> __m256i {
        let [a, b, c, d, e, f, g, h] = words.map(u32::cast_signed);
        _mm256_set_epi32(h, g, f, e, d, c, b, a)
    }

    #[target_feature(enable = "avx2")]
    fn words(vector: __m256i) -> [u32; LANES] {
        [
            _mm256_extract_epi32::<0>(vector),
            _mm256_extract_epi32::<1>(vector),
            _mm256_extract_epi32::<2>(vector),
            _mm256_extract_epi32::<3>(vector),
            _mm256_extract_epi32::<4>(vector),
            _mm256_extract_epi32::<5>(vector),
            _mm256_extract_epi32::<6>(vector),
            _mm256_extract_epi32::<7>(vector),
        ]
        .map(i32::cast_unsigned)
    }

    #[target_feature(enable = "avx2")]
    fn compress_avx2(states: &mut [[u32; LANES]; 4], data: &[&[u8]; LANES]) {
        let [mut a, mut b, mut c, mut d] = [vector(states[0]), vector(states[1]), vector(states[2]), vector(states[3])];
        let ones = _mm256_set1_epi32(-1);
        let length = data.iter().map(|data| data.len()).min().unwrap_or(0);
        for at in (0..length / BLOCK).map(|block| block * BLOCK) {
            let blocks: [&[u8; BLOCK]; LANES] =
                data.map(|data| data[at..].first_chunk().expect("a block lies between this and the least length"));
            let word = |index: usize| {
                let of = |block: &[u8; BLOCK]| {
                    let at = index * 4;
                    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
                };
                vector(blocks.map(of))
            };
            let mut message = [_mm256_set1_epi32(0); 16];
            for (index, slot) in message.iter_mut().enumerate() {
                *slot = word(index);
            }
            let before = (a, b, c, d);
            macro_rules! step {
                ($mix:expr, $index:expr, $number:expr, $left:literal) => {{
                    let sum = _mm256_add_epi32(
                        _mm256_add_epi32(a, message[$index]),
                        _mm256_set1_epi32(SINES[$number].cast_signed()),
                    );
                    let sum = _mm256_add_epi32(sum, $mix);
                    let turned =
                        _mm256_or_si256(_mm256_slli_epi32::<$left>(sum), _mm256_srli_epi32::<{ 32 - $left }>(sum));
                    (a, b, c, d) = (d, _mm256_add_epi32(b, turned), b, c);
                }};
            }
            macro_rules! round {
                ($mix:expr, $index:expr, $first:literal, $s:literal, $t:literal, $u:literal, $v:literal) => {
                    for four in 0..4 {
                        let number = $first + four * 4;
                        step!($mix, $index(number), number, $s);
                        step!($mix, $index(number + 1), number + 1, $t);
                        step!($mix, $index(number + 2), number + 2, $u);
                        step!($mix, $index(number + 3), number + 3, $v);
                    }
                };
            }
            round!(_mm256_or_si256(_mm256_and_si256(b, c), _mm256_andnot_si256(b, d)), |i: usize| i, 0, 7, 12, 17, 22);
            round!(
                _mm256_or_si256(_mm256_and_si256(d, b), _mm256_andnot_si256(d, c)),
                |i: usize| (5 * i + 1) % 16,
                16,
                5,
                9,
                14,
                20
            );
            round!(_mm256_xor_si256(_mm256_xor_si256(b, c), d), |i: usize| (3 * i + 5) % 16, 32, 4, 11, 16, 23);
            round!(
                _mm256_xor_si256(c, _mm256_or_si256(b, _mm256_xor_si256(d, ones))),
                |i: usize| (7 * i) % 16,
                48,
                6,
                10,
                15,
                21
            );
            a = _mm256_add_epi32(a, before.0);
            b = _mm256_add_epi32(b, before.1);
            c = _mm256_add_epi32(c, before.2);
            d = _mm256_add_epi32(d, before.3);
        }
        *states = [words(a), words(b), words(c), words(d)];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn body(length: usize, seed: u64) -> Bytes {
        let mut random = fastrand::Rng::with_seed(seed);
        (0..length).map(|_| random.u8(..)).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        /// However many and however long, each has its own sum.
        #[test]
        fn every_body_has_the_sum_that_it_has_alone(lengths in proptest::collection::vec(0_usize..5000, 0..30)) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let bodies: Vec<Bytes> = lengths.iter().zip(0..).map(|(length, seed)| body(*length, seed)).collect();
            let sums = runtime.block_on(futures_util::future::join_all(bodies.iter().map(|body| md5(body.clone()))));
            for (body, sum) in bodies.iter().zip(sums) {
                prop_assert_eq!(sum, <[u8; 16]>::from(Md5::digest(body)));
            }
        }
    }

    #[tokio::test]
    async fn lengths_around_the_padding_and_those_that_come_later() {
        for length in [0, 1, 55, 56, 57, 63, 64, 65, 119, 120, 127, 128, STRIDE * BLOCK - 1, STRIDE * BLOCK * 3 + 9] {
            let body = body(length, 7);
            assert_eq!(md5(body.clone()).await, <[u8; 16]>::from(Md5::digest(&body)), "{length}");
        }
    }

    #[test]
    fn a_runtime_that_ends_does_no_harm_to_another() {
        let first = tokio::runtime::Runtime::new().unwrap();
        let second = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let asked: Vec<_> = (0..20).map(|seed| first.spawn(md5(body(3 << 20, seed)))).collect();
        first.shutdown_background();
        for seed in 0..5 {
            let body = body(100_000, seed);
            assert_eq!(second.block_on(md5(body.clone())), <[u8; 16]>::from(Md5::digest(&body)));
        }
        drop(asked);
    }
}

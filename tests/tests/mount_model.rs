//! Mounts against a reference model: random trees, threads, faults, restarts and damage, and every byte compared.
//!
//! `MODEL_SEED=N` does one case again that has failed; only the timing of its threads is not the same. `MODEL_CASES=N` does so many.

use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestError, TestRunner};
use tests::model::{Case, Operation, Pick, Place, Round, Then, run};

fn pick() -> impl Strategy<Value = Pick> {
    prop_oneof![(0..5_u8).prop_map(Pick::Large), any::<u16>().prop_map(Pick::Any)]
}

fn buffer() -> impl Strategy<Value = usize> {
    prop::sample::select(vec![1, 777, 4096, 10_000, 65_536, 131_072, 1 << 20, (3 << 20) + 1])
}

fn place() -> impl Strategy<Value = Place> {
    let len = prop_oneof![
        4 => Just(4096_usize),
        3 => 1..300_000_usize,
        1 => Just(1 << 20),
        1 => 1..3_000_000_usize,
    ];
    // Near both ends as well, where rounding goes wrong.
    let at = prop_oneof![6 => any::<u16>(), 1 => Just(0), 1 => Just(u16::MAX)];
    (at, len).prop_map(|(at, len)| Place { at, len })
}

fn operation() -> impl Strategy<Value = Operation> {
    let places = || prop::collection::vec(place(), 1..12);
    prop_oneof![
        6 => (pick(), buffer()).prop_map(|(file, buffer)| Operation::ReadAll { file, buffer }),
        6 => (pick(), places()).prop_map(|(file, places)| Operation::ReadAt { file, places }),
        3 => (pick(), 2..6_usize, 4096..200_000_usize)
            .prop_map(|(file, streams, buffer)| Operation::Streams { file, streams, buffer }),
        2 => (pick(), 1000..200_000_usize).prop_map(|(file, buffer)| Operation::Backwards { file, buffer }),
        3 => (pick(), places()).prop_map(|(file, places)| Operation::Mapped { file, places }),
        2 => pick().prop_map(|file| Operation::MappedAll { file }),
        3 => (pick(), 1..30_u8).prop_map(|(file, times)| Operation::Churn { file, times }),
        1 => pick().prop_map(|file| Operation::PastEnd { file }),
        2 => pick().prop_map(|file| Operation::Hold { file }),
        2 => place().prop_map(|place| Operation::ReadHeld { place }),
        3 => pick().prop_map(|file| Operation::Forget { file }),
        2 => any::<u16>().prop_map(|directory| Operation::List { directory }),
        1 => Just(Operation::Walk),
        2 => (any::<u16>(), any::<u16>()).prop_map(|(directory, name)| Operation::Missing { directory, name }),
        1 => (pick(), any::<bool>()).prop_map(|(file, delete)| Operation::Replace { file, delete }),
        1 => (1..4_u8).prop_map(|what| Operation::DropCaches { what }),
    ]
}

fn round() -> impl Strategy<Value = Round> {
    let threads = prop::collection::vec(prop::collection::vec(operation(), 3..16), 1..7);
    let kill_after = prop::option::weighted(0.4, 0..25_usize);
    let then = prop_oneof![
        1 => Just(Then::Remount),
        1 => Just(Then::Restart),
        2 => (1..12_u8).prop_map(Then::Damage),
    ];
    (threads, kill_after, then, [0..4_u8, 0..4_u8, 0..4_u8]).prop_map(|(threads, kill_after, then, changes)| Round {
        threads,
        kill_after,
        then,
        changes,
    })
}

fn case() -> impl Strategy<Value = Case> {
    let objects = prop_oneof![1 => 0..3_usize, 4 => 3..60_usize, 2 => 60..400_usize];
    let cache_mib = prop::sample::select(vec![0_u64, 3, 5, 8, 12, 20]);
    let trouble = prop_oneof![1 => Just(0_u32), 4 => 1..40_u32];
    (
        any::<u64>(),
        objects,
        prop::bool::weighted(0.25),
        any::<bool>(),
        any::<bool>(),
        cache_mib,
        trouble,
        prop::collection::vec(round(), 2..5),
    )
        .prop_map(|(seed, objects, large, s3, prefix, cache_mib, trouble, rounds)| Case {
            seed,
            objects,
            large,
            s3,
            prefix,
            cache_mib,
            trouble,
            lies: false,
            rounds,
        })
}

/// A number from the environment.
fn variable(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|error| panic!("{name}={value:?} is no number: {error}")))
}

/// Does so many cases, each made of a seed of its own; a case that fails is tried again in up to `simpler` simpler forms.
fn check(cases: u64, simpler: u32) {
    let one = variable("MODEL_SEED");
    let cases = if one.is_some() { 1 } else { variable("MODEL_CASES").unwrap_or(cases) };
    let first = one.unwrap_or_else(|| fastrand::u64(..u64::MAX / 2));
    for seed in first..first + cases {
        let mut runner = TestRunner::new(Config {
            cases: 1,
            rng_seed: RngSeed::Fixed(seed),
            failure_persistence: None,
            max_shrink_iters: simpler,
            ..Config::default()
        });
        let outcome = runner.run(&case(), |case| run(&case).map_err(TestCaseError::fail));
        match outcome {
            Ok(()) => {}
            Err(TestError::Abort(why)) => panic!("MODEL_SEED={seed}: {why}"),
            Err(TestError::Fail(why, case)) => panic!("MODEL_SEED={seed}\n{why}\nin {case:?}"),
        }
    }
}

#[test]
fn every_byte_is_the_models() {
    check(8, 0);
}

#[test]
#[ignore = "soak: run by `make soak`"]
fn soak_every_byte_is_the_models() {
    check(300, 30);
}

/// A check that cannot fail is none.
#[test]
fn a_wrong_byte_is_seen_and_named() {
    let file = Pick::Large(0);
    let case = Case {
        seed: 1,
        objects: 3,
        large: true,
        s3: false,
        prefix: false,
        cache_mib: 0,
        trouble: 0,
        lies: true,
        rounds: vec![Round {
            threads: vec![vec![Operation::Walk, Operation::ReadAll { file, buffer: 65_536 }]],
            kill_after: None,
            then: Then::Remount,
            changes: [0; 3],
        }],
    };
    let why = run(&case).expect_err("the store lies");
    for hint in ["round 0: thread 0, operation 1: ReadAll", "byte ", " should be ", "; 1 of "] {
        assert!(why.contains(hint), "{hint:?} is missing in {why}");
    }
}

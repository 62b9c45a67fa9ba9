//! A short fuzz of every parser, on any machine: the seeds, then mutations of what led somewhere new.
//!
//! The targets are those of `fuzz/`, which runs them under libFuzzer for as long as one likes; that needs a C++ compiler
//! and builds everything anew. Here the signature that a target gives takes the place of coverage. Without
//! `HOPLITE_FUZZ_SECONDS` the number of inputs is fixed and the seed too, so that the run is the same on every machine;
//! with it, each target runs for so long, from a seed of its own.

#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, its helpers too"
)]

use std::collections::BTreeSet;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

#[path = "../../fuzz/src/targets/mod.rs"]
#[expect(unreachable_pub, reason = "public in the crate it belongs to")]
mod targets;

use targets::{TARGETS, Target};

/// Longer inputs make a run slow, and find what shorter ones find.
const INPUT_BYTES_MAX: usize = 2_048;

/// Inputs that led somewhere new and are mutated further.
const POOL_MAX: usize = 1_000;

/// Mutations of one input, at most.
const STEPS_MAX: usize = 6;

/// The seed of a run that is the same everywhere.
const SEED: u64 = 0x686f_706c_6974_6521;

/// How many inputs such a run has: a few seconds' work in a debug build.
fn inputs(target: &Target) -> u32 {
    match target.name {
        "request" => 40_000,
        "routes" => 8_000,
        "policies" => 1_500,
        _ => 8_000,
    }
}

/// A generator whose numbers are the same on every machine (xorshift).
struct Dice(u64);

// === impl Dice ===

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % bound.max(1) as u64).unwrap()
    }

    fn pick<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }

    /// A stretch of these bytes.
    fn stretch(&mut self, bytes: &[u8]) -> Range<usize> {
        let start = self.below(bytes.len() + 1);
        start..start + self.below((bytes.len() - start).min(64) + 1)
    }
}

/// What a target is run on.
struct Pool {
    inputs: Vec<Vec<u8>>,
    words: Vec<Vec<u8>>,
    signatures: BTreeSet<String>,
}

// === impl Pool ===

impl Pool {
    fn mutated(&self, dice: &mut Dice) -> Vec<u8> {
        let mut input = dice.pick(&self.inputs).clone();
        for _ in 0..=dice.below(STEPS_MAX) {
            let at = dice.below(input.len() + 1);
            let (replaced, new) = match dice.below(6) {
                0 | 1 => (at..at, dice.pick(&self.words).clone()),
                2 => (dice.stretch(&input), Vec::new()),
                3 => (at..at, input[dice.stretch(&input)].to_vec()),
                4 => {
                    let other = dice.pick(&self.inputs);
                    (dice.stretch(&input), other[dice.stretch(other)].to_vec())
                }
                _ => (
                    at..(at + 1).min(input.len()),
                    vec![u8::try_from(dice.below(256)).unwrap()],
                ),
            };
            drop(input.splice(replaced, new));
        }
        input.truncate(INPUT_BYTES_MAX);
        input
    }

    fn run(&mut self, target: &Target, input: Vec<u8>, seed: u64) {
        let Ok(signature) = catch_unwind(AssertUnwindSafe(|| (target.run)(&input))) else {
            panic!(
                "`{0}` failed (seed {seed:#x}); once it is mended, keep the input in fuzz/seeds/{0}: \"{1}\"",
                target.name,
                input.escape_ascii()
            );
        };
        if self.inputs.len() < POOL_MAX && self.signatures.insert(signature) {
            self.inputs.push(input);
        }
    }
}

/// The words of `fuzz/dictionary`, which is in libFuzzer's own form.
fn words() -> Vec<Vec<u8>> {
    let text = std::fs::read_to_string(fuzz("dictionary")).unwrap();
    let words = text.lines().filter(|line| line.starts_with('"')).map(|line| {
        let (mut word, mut rest) = (Vec::new(), &line.as_bytes()[1..line.len() - 1]);
        while let [byte, left @ ..] = rest {
            (rest, _) = match (byte, left) {
                (b'\\', [b'x', high, low, left @ ..]) => {
                    let digits = [*high, *low];
                    (
                        left,
                        word.push(u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap()),
                    )
                }
                (b'\\', [escaped, left @ ..]) => (left, word.push(*escaped)),
                _ => (left, word.push(*byte)),
            };
        }
        word
    });
    words.collect()
}

fn seeds(target: &Target) -> Vec<Vec<u8>> {
    let directory = fuzz("seeds").join(target.name);
    let mut files: Vec<PathBuf> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    files.iter().map(|file| std::fs::read(file).unwrap()).collect()
}

fn fuzz(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz").join(path)
}

/// Runs one target, for a time or for its number of inputs.
fn run(name: &str) {
    let target = TARGETS.iter().find(|target| target.name == name).unwrap();
    let time = std::env::var("HOPLITE_FUZZ_SECONDS").ok();
    let time = time.map(|seconds| Duration::from_secs(seconds.parse().expect("HOPLITE_FUZZ_SECONDS is a number")));
    let seed = match time {
        Some(_) => u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos()).unwrap() | 1,
        None => SEED,
    };
    let seeds = seeds(target);
    assert!(!seeds.is_empty(), "`{name}` has no seeds");
    let mut pool = Pool {
        inputs: seeds.clone(),
        words: words(),
        signatures: BTreeSet::new(),
    };
    let mut runs = 0;
    for input in seeds {
        pool.run(target, input, seed);
        runs += 1;
    }
    let (started, mut dice) = (Instant::now(), Dice(seed));
    while time.map_or(runs < inputs(target), |time| started.elapsed() < time) {
        let input = pool.mutated(&mut dice);
        pool.run(target, input, seed);
        runs += 1;
    }
    let seconds = started.elapsed().as_secs_f32();
    let outcomes = pool.signatures.len();
    eprintln!("fuzz {name}: {runs} inputs, {outcomes} outcomes, {seconds:.1} s, seed {seed:#x}");
    assert!(outcomes > 3, "`{name}` leads nowhere: {:?}", pool.signatures);
}

/// A test for each target, and one that there is no other: a target that nobody runs finds nothing.
macro_rules! fuzzed {
    ($($target:ident),* $(,)?) => {
        $(
            #[test]
            fn $target() {
                run(stringify!($target));
            }
        )*

        #[test]
        fn every_target_is_run() {
            assert_eq!(TARGETS.map(|target| target.name), [$(stringify!($target)),*]);
        }
    };
}

fuzzed!(
    request,
    routes,
    policies,
    bundle,
    grant,
    signers,
    table,
    openapi,
    evaluation,
    invitation,
    jwt,
    foreign,
    certificate,
    entry,
    csr,
    document,
    template,
    entries,
    tpm
);

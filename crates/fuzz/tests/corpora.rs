//! Every corpus, and mutations of it, the same in every run: `STOLOS_FUZZ_ROUNDS` per target (default 400) and another
//! `STOLOS_FUZZ_SEED` go where nobody has been. What is found is written to `fuzz/artifacts/<target>` and, once mended, kept
//! in the corpus.

#![allow(clippy::print_stderr, reason = "a test says what went wrong")]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use stolos_fuzz::{TARGETS, Target};

/// As much as a tokio worker has.
const STACK: usize = 2 << 20;
/// One input may take so long on a busy machine.
const PATIENCE: Duration = Duration::from_secs(10);
/// A target may grow the process by so much, all its inputs together.
const GROWTH: u64 = 512 << 20;
/// Inputs are at most so long: what a request may be is tested elsewhere.
const LONGEST: usize = 64 << 10;

fn folder(kind: &str, target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz").join(kind).join(target)
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// xorshift64*: enough to choose bytes with.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() >> 33) as usize % limit.max(1)
    }
}

/// Numbers and words that parsers trip over.
const INTERESTING: [&[u8]; 20] = [
    b"\0",
    b"\xff",
    b"\xff\xff",
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
    b"\x80",
    b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01",
    b"[[[[[[[[[[[[[[[[",
    b"{\"a\":{\"a\":",
    b"-1",
    b"18446744073709551616",
    b"1e999",
    b"\r\n",
    b"\n",
    b"&a *a",
    b"!!",
    b"%00",
    "\u{202e}\u{fffd}\u{1f600}".as_bytes(),
    b"$patch",
    b"..",
];

fn mutate(dice: &mut Dice, corpus: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = corpus[dice.below(corpus.len())].clone();
    for _ in 0..=dice.below(6) {
        let at = dice.below(bytes.len() + 1);
        match dice.below(8) {
            0 if at < bytes.len() => bytes[at] ^= 1 << dice.below(8),
            1 if at < bytes.len() => bytes[at] = dice.next() as u8,
            2 => drop(bytes.splice(at..at, INTERESTING[dice.below(INTERESTING.len())].iter().copied())),
            3 => bytes.truncate(at),
            4 => {
                let end = (at + dice.below(16)).min(bytes.len());
                bytes.drain(at..end);
            }
            5 => {
                // A piece of itself, many times: depth and repetition.
                let end = (at + 1 + dice.below(24)).min(bytes.len());
                let piece = bytes[at..end].repeat(1 + dice.below(200));
                bytes.splice(at..at, piece);
            }
            6 => {
                let other = &corpus[dice.below(corpus.len())];
                let from = dice.below(other.len() + 1);
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
            _ => drop(bytes.splice(at..at, [dice.next() as u8])),
        }
        bytes.truncate(LONGEST);
    }
    bytes
}

/// Resident memory of this process.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|l| l.trim().trim_end_matches("kB").trim().parse::<u64>().ok()).unwrap_or(0) << 10
}

fn try_one(target: &Target, bytes: &[u8], seed: u64) {
    let began = Instant::now();
    let ran = std::panic::catch_unwind(|| (target.run)(bytes));
    let slow = began.elapsed() > PATIENCE;
    if ran.is_err() || slow {
        let folder = folder("artifacts", target.name);
        let path = folder.join(format!("{seed:016x}-{}", bytes.len()));
        let kept = std::fs::create_dir_all(&folder).and_then(|()| std::fs::write(&path, bytes));
        let what = if slow { "takes too long" } else { "panics" };
        panic!("{} {what}; its input is in {} ({kept:?})", target.name, path.display());
    }
}

fn exercise(target: Target) {
    let mut corpus = Vec::new();
    for entry in std::fs::read_dir(folder("corpus", target.name)).expect("a corpus") {
        corpus.push(std::fs::read(entry.unwrap().path()).unwrap());
    }
    assert!(!corpus.is_empty(), "{} has no corpus", target.name);
    // Folders are not read in the same order everywhere.
    corpus.sort();
    let seed = number("STOLOS_FUZZ_SEED", 2026) | 1;
    let before = resident();
    for bytes in corpus.iter().chain([&Vec::new()]) {
        try_one(&target, bytes, seed);
    }
    let mut dice = Dice(seed);
    for _ in 0..number("STOLOS_FUZZ_ROUNDS", 400) {
        try_one(&target, &mutate(&mut dice, &corpus), seed);
    }
    let grown = resident().saturating_sub(before);
    assert!(grown < GROWTH, "{} took {} MiB and keeps them (seed {seed})", target.name, grown >> 20);
    eprintln!("{}: {} inputs and their mutations, {} KiB more resident", target.name, corpus.len(), grown >> 10);
}

#[test]
fn every_corpus_and_mutations_of_it() {
    let wanted = std::env::var("STOLOS_FUZZ_TARGET").ok();
    for target in TARGETS.iter().filter(|target| wanted.as_deref().is_none_or(|name| name == target.name)) {
        let target = *target;
        let thread = std::thread::Builder::new().name(target.name.to_owned()).stack_size(STACK);
        thread.spawn(move || exercise(target)).unwrap().join().unwrap();
    }
}

/// Depth is what overflows a stack, and no mutation gets there by itself.
#[test]
fn depth_is_refused_not_recursed_into() {
    let deep = 200_000;
    let nest = |open: &str, close: &str| format!("{}1{}", open.repeat(deep), close.repeat(deep));
    let texts = [nest("[", "]"), nest("{\"a\":", "}"), nest("- ", ""), "&a [".repeat(1000), nest("a:\n ", "")];
    let inputs = texts.iter().flat_map(|text| {
        let post = |media: &str| {
            let head = "PATCH /apis/example.com/v1/namespaces/default/things/x?fieldManager=f\ncontent-type: ";
            format!("{head}{media}\n\n{text}")
        };
        ["application/json-patch+json", "application/merge-patch+json", "application/apply-patch+yaml"]
            .into_iter()
            .map(post)
            .chain([text.clone(), format!("{{}}\0{text}")])
            .collect::<Vec<_>>()
    });
    let inputs: Vec<_> = inputs.collect();
    for name in ["selector", "patch", "field_set", "mesh_file", "kubeconfig", "api_request"] {
        let inputs = inputs.clone();
        let thread = std::thread::Builder::new().name(name.to_owned()).stack_size(STACK);
        let run = move || inputs.iter().for_each(|input| stolos_fuzz::run(name, input.as_bytes()));
        thread.spawn(run).unwrap().join().unwrap();
    }
}

/// What is stored can be read again: a patch must not bring an object to a depth that readers refuse.
#[test]
fn what_patches_build_up_stays_readable() {
    let nested = |deep: usize, inner: &str| format!("{}{inner}{}", "{\"a\":".repeat(deep), "}".repeat(deep));
    let things = "/apis/example.com/v1/namespaces/default/things";
    for deep in [90, 97, 110, 120, 126] {
        let thing = format!(
            "{{\"apiVersion\":\"example.com/v1\",\"kind\":\"Thing\",\"metadata\":{{\"name\":\"d{deep}\"}},\"spec\":{}}}",
            nested(deep, "{}")
        );
        let patch =
            format!("[{{\"op\":\"add\",\"path\":\"/spec{}/b\",\"value\":{}}}]", "/a".repeat(deep), nested(deep, "1"));
        for input in [
            format!("POST {things}?fieldManager=f\ncontent-type: application/json\n\n{thing}"),
            format!("PATCH {things}/d{deep}?fieldManager=f\ncontent-type: application/json-patch+json\n\n{patch}"),
            format!(
                "PATCH {things}/d{deep}?fieldManager=g&force=true\ncontent-type: application/apply-patch+yaml\n\n{thing}"
            ),
            format!("GET {things}/d{deep}\n\n"),
            format!("GET {things}\n\n"),
        ] {
            stolos_fuzz::run("api_request", input.as_bytes());
        }
    }
}

/// `fuzz/` names every target, and nothing else.
#[test]
fn cargo_fuzz_knows_every_target() {
    let mut files: Vec<_> = std::fs::read_dir(folder("fuzz_targets", "."))
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned())
        .collect();
    files.sort();
    let mut names: Vec<_> = TARGETS.iter().map(|target| target.name.to_owned()).collect();
    names.sort();
    assert_eq!(files, names);
    let manifest = std::fs::read_to_string(folder(".", "Cargo.toml")).unwrap();
    for name in names {
        assert!(manifest.contains(&format!("name = \"{name}\"")), "fuzz/Cargo.toml lacks {name}");
    }
}

/// The corpus of `jwt` gets past the signature: one that says the truth is believed, the others are refused for what
/// they claim.
#[test]
fn signed_tokens_are_judged_by_their_claims() {
    let believed = |name: &str| {
        let token = std::fs::read(folder("corpus", "jwt").join(name)).unwrap();
        stolos_fuzz::is_believed(&token)
    };
    assert!(believed("account"));
    for name in ["another_uid", "another_issuer", "another_audience", "over", "not_yet", "gone_pod", "algorithm_none"] {
        assert!(!believed(name), "{name}");
    }
}

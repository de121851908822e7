use super::*;

fn exact(number: u64) -> ExactRevision {
    let revision = RevisionId { epoch: "an epoch:1".into(), number };
    ExactRevision { revision, digest: format!("{number:064x}") }
}

/// The things that happen in a run before it ends.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// A revision is about to be applied.
    Trial(u64),
    /// The run has lasted for the crash window.
    Lasts,
    /// A revision was served for the crash window.
    Survives(u64, Origin),
    /// The run ends in order.
    Ends,
    /// An operator wants the refused revision to be tried again.
    Retry,
}

/// The runs before a start, oldest first.
type Runs = &'static [&'static [Step]];

/// A name, runs, and the result of a start after them.
type HistoryCase = (&'static str, Runs, Start, Option<(u64, u32)>);

/// A name, runs, the applied and the proven revision, and what a start serves.
type DiskCase = (&'static str, Runs, Option<u64>, Option<u64>, Start);

use Origin::{ControlPlane, Disk};
use Step::{Ends, Lasts, Retry, Survives, Trial};

/// The result of a start after some runs: what it serves, and the refused revision with its crashes.
fn start_after(runs: Runs, applied: Option<u64>, proven: Option<u64>) -> (Start, Option<(u64, u32)>) {
    let (applied, proven) = (applied.map(exact), proven.map(exact));
    let mut history = History::default();
    for run in runs {
        (history, _) = history.next_run("boot".to_owned(), proven.as_ref());
        for step in *run {
            match *step {
                Trial(number) => history.set_trial(Some(exact(number))),
                Lasts => history.on_lasted(),
                Survives(number, origin) => history.on_survived(&exact(number), origin),
                Ends => history.on_ended(),
                Retry => history.on_retry(),
            }
            // Everything is read back from the file.
            assert_eq!(History::decode(&history.encode()).as_ref(), Some(&history));
        }
    }
    let (history, crash_loop) = history.next_run("boot".to_owned(), proven.as_ref());
    let refused = history.refused().map(|crashed| (crashed.exact.revision.number, crashed.times));
    (choose(&history, crash_loop, applied.as_ref(), proven.as_ref()), refused)
}

#[test]
fn a_start_follows_from_the_runs_before() {
    const CRASH: &[Step] = &[Trial(9)];
    const LONG: &[Step] = &[Trial(9), Lasts, Survives(9, Disk)];
    const CLEAN: &[Step] = &[Trial(9), Ends];
    const LATE: &[Step] = &[Trial(8), Lasts, Survives(8, Disk), Trial(9)];
    let cases: &[HistoryCase] = &[
        ("the first start", &[], Start::Applied, None),
        ("one crash", &[CRASH], Start::Applied, None),
        ("two crashes", &[CRASH, CRASH], Start::Applied, None),
        ("three crashes", &[CRASH, CRASH, CRASH], Start::Proven, Some((9, 3))),
        ("crashes before anything was applied", &[&[], &[], &[]], Start::Proven, None),
        ("clean restarts", &[CLEAN, CLEAN, CLEAN, CLEAN], Start::Applied, None),
        ("a clean restart between crashes", &[CRASH, CRASH, CLEAN, CRASH], Start::Applied, None),
        ("a long run between crashes", &[CRASH, CRASH, LONG, CRASH], Start::Applied, None),
        ("long runs that are killed", &[LONG, LONG, LONG, LONG], Start::Applied, None),
        (
            "a fallback that lasts, and is restarted",
            &[CRASH, CRASH, CRASH, &[Trial(5), Lasts, Survives(5, Disk), Ends]],
            Start::Proven,
            Some((9, 3)),
        ),
        ("a fallback that crashes too", &[CRASH, CRASH, CRASH, &[Trial(5)]], Start::Proven, Some((9, 3))),
        (
            "a fallback that crashes again and again",
            &[CRASH, CRASH, CRASH, &[Trial(5)], &[Trial(5)], &[Trial(5)]],
            Start::AskFirst,
            Some((9, 3)),
        ),
        (
            "the revision after it, which crashes as well",
            &[CRASH, CRASH, CRASH, &[Trial(5), Trial(10)]],
            Start::Proven,
            Some((10, 1)),
        ),
        (
            "the revision after it, which is good",
            &[CRASH, CRASH, CRASH, &[Trial(5), Trial(10), Lasts, Survives(10, ControlPlane)]],
            Start::Applied,
            None,
        ),
        (
            "the revision after it, in an orderly run that was too short",
            &[CRASH, CRASH, CRASH, &[Trial(5), Trial(10), Ends]],
            Start::Proven,
            Some((9, 3)),
        ),
        ("a retry", &[CRASH, CRASH, CRASH, &[Trial(5), Lasts, Retry]], Start::Applied, None),
        (
            "a retry that crashes once",
            &[CRASH, CRASH, CRASH, &[Trial(5), Lasts, Retry, Trial(9)]],
            Start::Applied,
            None,
        ),
        (
            "a revision from a control plane that crashes long runs",
            &[LATE, LATE, LATE],
            Start::Proven,
            Some((9, 3)),
        ),
        (
            "another revision from a control plane in each run",
            &[&[Trial(8), Trial(10)], &[Trial(8), Trial(11)], &[Trial(8), Trial(12)]],
            Start::Proven,
            Some((12, 1)),
        ),
        (
            "a revision that crashes while it is new, and once later",
            &[CRASH, CRASH, &[Trial(9), Lasts, Survives(9, Disk), Trial(9)]],
            Start::Applied,
            None,
        ),
    ];
    for (name, runs, start, refused) in cases {
        assert_eq!(start_after(runs, Some(9), Some(5)), (*start, *refused), "{name}");
    }
}

#[test]
fn a_start_serves_what_there_is() {
    let crashes: Runs = &[&[Trial(9)], &[Trial(9)], &[Trial(9)]];
    let live: Runs = &[&[Trial(8), Trial(9)], &[Trial(8), Trial(9)], &[Trial(8), Trial(9)]];
    let cases: &[DiskCase] = &[
        ("a new directory", &[], None, None, Start::AskFirst),
        ("a directory of an older version", &[], Some(9), None, Start::Applied),
        ("an unreadable snapshot", &[], None, Some(5), Start::Proven),
        ("crashes with nothing on disk", crashes, None, None, Start::AskFirst),
        ("crashes with nothing proven", crashes, Some(9), None, Start::AskFirst),
        ("crashes with a revision that never got to the disk", live, Some(8), None, Start::Applied),
        ("the same, with a proven revision", live, Some(8), Some(5), Start::Proven),
        ("the proven revision itself", crashes, Some(9), Some(9), Start::AskFirst),
        ("crashes, without reading the applied revision", crashes, None, Some(5), Start::Proven),
    ];
    for (name, runs, applied, proven, start) in cases {
        assert_eq!(start_after(runs, *applied, *proven).0, *start, "{name}");
    }
}

#[test]
fn a_torn_marker_is_none() {
    let mut history = History::default();
    for _ in 0..4 {
        history = history.next_run("boot".to_owned(), None).0;
        history.set_trial(Some(exact(9)));
    }
    let text = history.encode();
    assert_eq!(History::decode(&text).as_ref(), Some(&history));
    // The file is padded.
    assert_eq!(History::decode(&format!("{text}\n\n\n")).as_ref(), Some(&history));
    for length in 0..text.len() - 1 {
        assert_eq!(History::decode(&text[..length]), None, "cut at {length}");
    }
    for index in 0..text.len() - 1 {
        let mut spoilt = text.clone().into_bytes();
        spoilt[index] ^= 1;
        let spoilt = String::from_utf8(spoilt).unwrap();
        assert_eq!(History::decode(&spoilt), None, "byte {index}");
    }
}

#[test]
fn a_line_of_a_later_version_is_skipped() {
    let text = "signalbox starts 1\nboot b\nyoung 1\nyoung-crashes 2\nproof 7\n";
    let text = format!("{text}end {}\n", blake3::hash(text.as_bytes()));
    let expected = History { boot: "b".into(), young: true, young_crashes: 2, ..History::default() };
    assert_eq!(History::decode(&text), Some(expected));
}

#[test]
fn the_reason_says_how_often_it_crashed() {
    let window = Duration::from_secs(30);
    let crashed = |times, young_runs| Crashed { exact: exact(9), times, young_runs }.message(window);
    assert_eq!(crashed(3, 3), "the proxy crashed 3 times within 30 s of starting with it");
    assert_eq!(crashed(1, 4), "the proxy crashed 4 times within 30 s of starting, the last time with it");
}

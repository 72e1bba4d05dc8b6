//! Both ends against each other, and one end against whatever comes.

use std::collections::HashMap;

use super::frame::{Header, write_credit, write_empty};
use super::*;

const LANES_MAX: usize = 3;

/// Frames, put together by hand.
#[derive(Default)]
struct Frames(Vec<u8>);

impl Frames {
    fn empty(mut self, lane: u32, kind: Kind) -> Self {
        write_empty(lane, kind, &mut self.0);
        self
    }

    fn open(self, lane: u32) -> Self {
        self.empty(lane, Kind::Open)
    }

    fn data(mut self, lane: u32, length: usize) -> Self {
        Header { lane, kind: Kind::Data, length }.write(&mut self.0);
        self.0.resize(self.0.len() + length, b'x');
        self
    }

    /// As much as may be on the way.
    fn much(self, lane: u32, bytes: usize) -> Self {
        (0..bytes / DATA_BYTES_MAX).fold(self, |frames, _| frames.data(lane, DATA_BYTES_MAX))
    }

    fn credit(mut self, lane: u32, bytes: usize) -> Self {
        write_credit(lane, bytes, &mut self.0);
        self
    }

    fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }
}

/// All that a table makes of bytes: how often, and what stopped it.
fn hear(table: &mut Table<()>, mut bytes: &[u8]) -> Result<Vec<String>, Broken> {
    let mut heard = Vec::new();
    loop {
        match table.received(bytes)? {
            Step::Frame(count, event) => {
                bytes = &bytes[count..];
                heard.push(if let Event::Data(lane, bytes) = event {
                    format!("{} bytes on {lane}", bytes.len())
                } else {
                    format!("{event:?}")
                });
            }
            Step::More => return Ok(heard),
            Step::Wait => {
                heard.push("Wait".to_owned());
                return Ok(heard);
            }
        }
    }
}

type Heard<'h> = Result<&'h [&'h str], Broken>;

fn check(name: &str, table: &mut Table<()>, frames: &Frames, expected: Heard<'_>) {
    let heard = hear(table, &frames.0);
    let expected = expected.map(|all| all.iter().map(|one| (*one).to_owned()).collect::<Vec<_>>());
    assert_eq!(heard, expected, "{name}");
}

#[test]
fn what_the_accepting_end_makes_of_frames() {
    let begun = || Frames::default().open(1);
    let behind = |kind| Err(Broken::BehindEnd { kind, lane: 1 });
    let unopened = |kind, lane| Err(Broken::Unopened { kind, lane });
    let table: Vec<(&str, Frames, Heard<'_>)> = vec![
        ("nothing", Frames::default(), Ok(&[])),
        ("a piece of a header", Frames::default().raw(&[0, 0, 0, 1, 1, 0, 0]), Ok(&[])),
        ("a lane", begun(), Ok(&["Opened(1)"])),
        ("bytes", begun().data(1, 5), Ok(&["Opened(1)", "5 bytes on 1"])),
        ("a piece of bytes", begun().raw(&[0, 0, 0, 1, 2, 0, 0, 5, 1, 2]), Ok(&["Opened(1)"])),
        ("ended", begun().empty(1, Kind::End), Ok(&["Opened(1)", "Ended(1)"])),
        ("reset", begun().empty(1, Kind::Reset), Ok(&["Opened(1)", "Reset(1)"])),
        (
            "reset behind its end",
            begun().empty(1, Kind::End).empty(1, Kind::Reset),
            Ok(&["Opened(1)", "Ended(1)", "Reset(1)"]),
        ),
        ("three", begun().open(2).open(3), Ok(&["Opened(1)", "Opened(2)", "Opened(3)"])),
        ("four", begun().open(2).open(3).open(4), Err(Broken::Crowded { max: LANES_MAX })),
        (
            "one that is over must be closed first",
            begun().open(2).open(3).empty(2, Kind::Reset).open(4),
            Ok(&["Opened(1)", "Opened(2)", "Opened(3)", "Reset(2)", "Wait"]),
        ),
        ("twice", begun().open(1), Err(Broken::OutOfTurn { lane: 1, next: 2 })),
        ("a gap", begun().open(3), Err(Broken::OutOfTurn { lane: 3, next: 2 })),
        ("lane 0", Frames::default().open(0), Err(Broken::OutOfTurn { lane: 0, next: 1 })),
        ("bytes on lane 0", begun().data(0, 1), unopened(Kind::Data, 0)),
        ("bytes on a lane to come", begun().data(2, 1), unopened(Kind::Data, 2)),
        ("credit on a lane to come", begun().credit(2, 1), unopened(Kind::Credit, 2)),
        ("bytes behind the end", begun().empty(1, Kind::End).data(1, 1), behind(Kind::Data)),
        ("an end behind the end", begun().empty(1, Kind::End).empty(1, Kind::End), behind(Kind::End)),
        ("bytes behind a reset", begun().empty(1, Kind::Reset).data(1, 1), behind(Kind::Data)),
        ("credit behind a reset", begun().empty(1, Kind::Reset).credit(1, 1), behind(Kind::Credit)),
        ("a reset behind a reset", begun().empty(1, Kind::Reset).empty(1, Kind::Reset), behind(Kind::Reset)),
        (
            "more than a window",
            begun().much(1, REQUEST_WINDOW_BYTES).data(1, 1),
            Err(Broken::Overrun { lane: 1 }),
        ),
        ("credit for nothing", begun().credit(1, 0), Err(Broken::Overflow { lane: 1 })),
        ("credit beyond the window", begun().credit(1, 1), Err(Broken::Overflow { lane: 1 })),
        ("a kind that is not", begun().raw(&[0, 0, 0, 1, 7, 0, 0, 0]), Err(Broken::Kind(7))),
        ("a kind of zero", begun().raw(&[0, 0, 0, 1, 0, 0, 0, 0]), Err(Broken::Kind(0))),
        ("no bytes", begun().data(1, 0), Err(Broken::Length { kind: Kind::Data, length: 0 })),
        (
            "too many bytes, of which none is waited for",
            begun().raw(&[0, 0, 0, 1, 2, 0, 0x40, 1]),
            Err(Broken::Length { kind: Kind::Data, length: DATA_BYTES_MAX + 1 }),
        ),
        (
            "an end with bytes",
            begun().raw(&[0, 0, 0, 1, 3, 0, 0, 1, 0]),
            Err(Broken::Length { kind: Kind::End, length: 1 }),
        ),
        (
            "credit of three bytes",
            begun().raw(&[0, 0, 0, 1, 5, 0, 0, 3, 0, 0, 1]),
            Err(Broken::Length { kind: Kind::Credit, length: 3 }),
        ),
        ("leaving", begun().empty(0, Kind::Leaving), Err(Broken::Direction(Kind::Leaving))),
    ];
    for (name, frames, expected) in table {
        check(name, &mut Table::new(End::Accepting, LANES_MAX), &frames, expected);
    }
}

#[test]
fn what_the_connecting_end_makes_of_frames() {
    let table: [(&str, Frames, Heard<'_>); 6] = [
        ("an answer", Frames::default().data(1, 9).empty(1, Kind::End), Ok(&["9 bytes on 1", "Ended(1)"])),
        ("a lane of its own", Frames::default().open(2), Err(Broken::Direction(Kind::Open))),
        (
            "a lane that was not opened",
            Frames::default().data(2, 1),
            Err(Broken::Unopened { kind: Kind::Data, lane: 2 }),
        ),
        ("leaving", Frames::default().empty(0, Kind::Leaving), Ok(&["Leaving"])),
        (
            "a lane leaving",
            Frames::default().empty(1, Kind::Leaving),
            Err(Broken::Unopened { kind: Kind::Leaving, lane: 1 }),
        ),
        (
            "leaving, and answers",
            Frames::default().empty(0, Kind::Leaving).data(1, 1),
            Ok(&["Leaving", "1 bytes on 1"]),
        ),
    ];
    for (name, frames, expected) in table {
        let mut connecting = Table::new(End::Connecting, LANES_MAX);
        assert_eq!(connecting.open(&mut Vec::new()), Some(1));
        check(name, &mut connecting, &frames, expected);
    }
}

#[test]
fn what_comes_late_for_a_lane_that_is_gone_is_dropped() {
    let mut table = Table::<()>::new(End::Accepting, LANES_MAX);
    hear(&mut table, &Frames::default().open(1).0).unwrap();
    let mut out = Vec::new();
    assert_eq!(table.close(1, &mut out), Some(()));
    assert_eq!(out, Frames::default().empty(1, Kind::Reset).0);
    let late = Frames::default().data(1, 7).credit(1, 9).empty(1, Kind::End).empty(1, Kind::Reset);
    check("late", &mut table, &late, Ok(&["Late"; 4]));
    check(
        "and is not opened again",
        &mut table,
        &Frames::default().open(1),
        Err(Broken::OutOfTurn { lane: 1, next: 2 }),
    );
}

#[test]
fn no_more_lanes_than_are_agreed_on_and_none_on_one_that_leaves() {
    let (mut table, mut out) = (Table::<()>::new(End::Connecting, LANES_MAX), Vec::new());
    let opened: Vec<_> = (0..4).map(|_| table.open(&mut out)).collect();
    assert_eq!(opened, [Some(1), Some(2), Some(3), None]);
    // Both have ended it: it is over, though its reader may not have read all.
    table.end(2, &mut out);
    assert!(!table.takes_more());
    check("its end", &mut table, &Frames::default().empty(2, Kind::End), Ok(&["Ended(2)"]));
    assert_eq!((table.open(&mut out), table.len()), (Some(4), 4));
    assert_eq!(table.close(1, &mut out), Some(()));
    check("leaving", &mut table, &Frames::default().empty(0, Kind::Leaving), Ok(&["Leaving"]));
    assert_eq!(table.open(&mut out), None);
}

#[test]
fn a_reader_gives_credit_when_it_has_taken_half_a_window() {
    for (end, window) in [(End::Accepting, REQUEST_WINDOW_BYTES), (End::Connecting, REPLY_WINDOW_BYTES)] {
        let (mut table, mut out) = (Table::<()>::new(end, LANES_MAX), Vec::new());
        let opened =
            if table.open(&mut out).is_some() { Frames::default() } else { Frames::default().open(1) };
        hear(&mut table, &opened.much(1, window).0).unwrap();
        out.clear();
        table.took(1, window / 2 - 1, &mut out);
        assert!(out.is_empty());
        table.took(1, 1, &mut out);
        assert_eq!(out, Frames::default().credit(1, window / 2).0);
        hear(&mut table, &Frames::default().data(1, 8).empty(1, Kind::End).0).unwrap();
        out.clear();
        table.took(1, window / 2, &mut out);
        assert!(out.is_empty(), "nothing more comes");
    }
}

#[test]
fn what_is_said_in_pieces_goes_in_as_few_frames_as_can_be() {
    let (mut table, mut out) = (Table::<()>::new(End::Accepting, LANES_MAX), Vec::new());
    hear(&mut table, &Frames::default().open(1).0).unwrap();
    let (head, body) = ([1_u8; 10], [2_u8; DATA_BYTES_MAX]);
    let parts = [&head[..], &[], &body[..]];
    assert_eq!(table.say(1, parts.into_iter(), 12, &mut out), 12, "there is room for so much");
    assert_eq!(out, [&[0, 0, 0, 1, 2, 0, 0, 12][..], &head, &[2, 2]].concat());
    out.clear();
    assert_eq!(table.say(1, parts.into_iter(), usize::MAX, &mut out), 10 + DATA_BYTES_MAX);
    assert_eq!(out.len(), 10 + DATA_BYTES_MAX + 2 * HEADER_BYTES);
    let large = vec![0; 2 * REPLY_WINDOW_BYTES];
    let rest = REPLY_WINDOW_BYTES - 12 - 10 - DATA_BYTES_MAX;
    assert_eq!(table.say(1, std::iter::once(&large[..]), usize::MAX, &mut out), rest, "its credit");
    assert_eq!(table.say(1, std::iter::once(&large[..]), usize::MAX, &mut out), 0);
    table.end(1, &mut out);
    check("credit", &mut table, &Frames::default().credit(1, 5), Ok(&["Credit(1)"]));
    assert_eq!(table.say(1, std::iter::once(&large[..]), usize::MAX, &mut out), 0, "it has ended");
}

/// Numbers that look random and are the same each time (xorshift).
struct Numbers(u64);

impl Numbers {
    fn of(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15))
    }

    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % bound as u64).unwrap()
    }
}

/// An end whose readers take what they like.
struct Side {
    table: Table<Vec<u8>>,
    out: Vec<u8>,
    /// What was said and heard on each lane, in all.
    said: HashMap<u32, Vec<u8>>,
    heard: HashMap<u32, Vec<u8>>,
    open: Vec<u32>,
    /// What may wait on a lane.
    bytes_max: usize,
}

impl Side {
    fn new(end: End) -> Self {
        let (said, heard) = (HashMap::new(), HashMap::new());
        let bytes_max = if end == End::Connecting { REPLY_WINDOW_BYTES } else { REQUEST_WINDOW_BYTES };
        Self { table: Table::new(end, LANES_MAX), out: Vec::new(), said, heard, open: Vec::new(), bytes_max }
    }

    fn acts(&mut self, numbers: &mut Numbers) {
        let Self { table, out, said, heard, open, .. } = self;
        if numbers.below(8) == 0 {
            open.extend(table.open(out));
        }
        if numbers.below(40_000) == 0 {
            table.leave(out);
        }
        if open.is_empty() {
            return;
        }
        let at = numbers.below(open.len());
        let lane = open[at];
        match numbers.below(24) {
            0 => table.end(lane, out),
            1 => {
                let left = table.close(lane, out).unwrap();
                assert!(left.len() <= REPLY_WINDOW_BYTES);
                open.remove(at);
            }
            2..12 => {
                let bytes: Vec<u8> = (0..numbers.below(40_000)).map(|at| at.to_le_bytes()[0]).collect();
                let count = table.say(lane, bytes.chunks(7777), numbers.below(100_000), out);
                said.entry(lane).or_default().extend(&bytes[..count]);
            }
            _ => {
                let inbox = &mut table.lane(lane).unwrap().own;
                let count = numbers.below(inbox.len() + 1);
                heard.entry(lane).or_default().extend(inbox.drain(..count));
                table.took(lane, count, out);
            }
        }
    }

    /// Hears a piece of what the other has said.
    fn hears(&mut self, other: &mut Vec<u8>, numbers: &mut Numbers) {
        let piece = numbers.below(other.len() + 1);
        let mut used = 0;
        while let Step::Frame(count, event) =
            self.table.received(&other[used..piece]).expect("both keep to it")
        {
            used += count;
            match event {
                Event::Opened(lane) => self.open.push(lane),
                Event::Data(lane, bytes) => {
                    let inbox = &mut self.table.lane(lane).unwrap().own;
                    inbox.extend_from_slice(bytes);
                    assert!(inbox.len() <= self.bytes_max, "what waits is bounded");
                }
                Event::Ended(_) | Event::Reset(_) | Event::Credit(_) | Event::Leaving | Event::Late => {}
            }
        }
        other.drain(..used);
    }
}

#[test]
fn two_ends_that_keep_to_it_never_break_and_lose_nothing() {
    for seed in 1..=40 {
        let mut numbers = Numbers::of(seed);
        let (mut here, mut there) = (Side::new(End::Connecting), Side::new(End::Accepting));
        for _ in 0..4_000 {
            here.acts(&mut numbers);
            there.acts(&mut numbers);
            if numbers.below(3) == 0 {
                there.hears(&mut here.out, &mut numbers);
                here.hears(&mut there.out, &mut numbers);
            }
        }
        assert!(here.said.len() > 1 && there.said.len() > 1, "{seed}: lanes came and went");
        for (from, to) in [(&here, &there), (&there, &here)] {
            for (lane, heard) in &to.heard {
                let said = from.said.get(lane).map(Vec::as_slice).unwrap_or_default();
                assert!(said.starts_with(heard), "{seed}: lane {lane} heard what was said");
            }
        }
    }
}

#[test]
fn whatever_comes_is_taken_or_refused_and_bounded() {
    for seed in 1..=3_000 {
        let mut numbers = Numbers::of(seed);
        let mut frames = Frames::default();
        for next in 1..40 {
            let lane = u32::try_from(numbers.below(5)).unwrap();
            frames = match numbers.below(7) {
                0 => frames.open(next),
                1 => frames.open(lane),
                2 => frames.data(lane, numbers.below(3) * numbers.below(9_000)),
                3 => frames.credit(lane, numbers.below(70_000)),
                4 => frames.empty(lane, Kind::ALL[numbers.below(6)]),
                5 => frames.raw(&[0, 0, 0, 1, u8::try_from(numbers.below(9)).unwrap(), 0, 0, 0]),
                _ => frames.empty(lane, Kind::End),
            };
        }
        let end = if seed % 2 == 0 { End::Connecting } else { End::Accepting };
        let (mut table, mut out) = (Table::<()>::new(end, LANES_MAX), Vec::new());
        table.open(&mut out);
        // However it ends, it ends, and no more is held than was agreed on.
        let _ = hear(&mut table, &frames.0);
        assert!(
            table.len() <= LANES_MAX && table.lanes().all(|lane| lane.credit() <= REPLY_WINDOW_BYTES),
            "{seed}"
        );
    }
}

//! Lanes over a pipe in memory: both ends of this program, or one end and whatever it is told.

use std::future::Future;
use std::pin::pin;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::task::spawn_local;
use toolgate_core::lanes::{HEADER_BYTES, Kind, REPLY_WINDOW_BYTES};

use super::*;

/// Small, so that much is written in many pieces.
const PIPE_BYTES: usize = 10_000;

/// Runs it on a thread's own runtime, as workers do.
fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build_local(tokio::runtime::LocalOptions::default())
        .unwrap()
        .block_on(test);
}

/// Drives an end that gets no lanes.
fn drive<S: AsyncRead + AsyncWrite + Unpin + 'static>(mut driver: Driver<S>) {
    spawn_local(async move { while let Ok(Some(_)) = driver.next().await {} });
}

/// Lanes whose other end says everything back that it hears, and ends when it does.
fn echoed() -> Lanes {
    let (here, there) = duplex(PIPE_BYTES);
    let (lanes, driver) = Lanes::over(here);
    drive(driver);
    spawn_local(async move {
        let mut there = Driver::accepting(there);
        while let Ok(Some(mut lane)) = there.next().await {
            spawn_local(async move {
                let mut bytes = vec![0; 5_000];
                while let Ok(count @ 1..) = lane.read(&mut bytes).await {
                    lane.write_all(&bytes[..count]).await.unwrap();
                }
                lane.shutdown().await.unwrap();
            });
        }
    });
    lanes
}

/// The connecting end, and the other as bytes.
fn raw() -> (Lanes, DuplexStream) {
    let (here, there) = duplex(10 * REPLY_WINDOW_BYTES);
    let (lanes, driver) = Lanes::over(here);
    drive(driver);
    (lanes, there)
}

fn frame(lane: u32, kind: Kind, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&lane.to_be_bytes()[..], &[kind.byte()], &length[1..], payload].concat()
}

async fn asked(lane: &mut Lane, bytes: &[u8]) {
    lane.write_all(bytes).await.unwrap();
    let mut back = vec![0; bytes.len()];
    lane.read_exact(&mut back).await.unwrap();
    assert!(back == bytes);
}

#[test]
fn every_lane_has_its_own_bytes_and_a_slow_one_holds_up_no_other() {
    run(async {
        let lanes = echoed();
        let mut slow = lanes.open().unwrap();
        // As much as there is room for: nobody reads what comes back.
        let large = vec![7; 20 * REPLY_WINDOW_BYTES];
        let mut stuck = pin!(slow.write_all(&large));
        assert!(tokio::time::timeout(std::time::Duration::from_millis(1), &mut stuck).await.is_err());
        let mut others: Vec<Lane> = (1..LANES_MAX).map(|_| lanes.open().unwrap()).collect();
        assert!(lanes.open().is_none() && lanes.takes_more(), "there are as many as may be");
        for (at, lane) in others.iter_mut().enumerate() {
            asked(lane, &vec![at.to_le_bytes()[0]; 1 + at * 97]).await;
        }
        drop(others);
        asked(&mut lanes.open().unwrap(), b"once more").await;
    });
}

#[test]
fn much_arrives_whole_and_its_end_behind_it() {
    run(async {
        let lanes = echoed();
        let (mut reads, mut writes) = tokio::io::split(lanes.open().unwrap());
        let large: Vec<u8> = (0..40 * REPLY_WINDOW_BYTES).map(|at| at.to_le_bytes()[1]).collect();
        let sent = large.clone();
        spawn_local(async move {
            writes.write_all(&sent).await.unwrap();
            writes.shutdown().await.unwrap();
        });
        let mut back = Vec::new();
        reads.read_to_end(&mut back).await.unwrap();
        assert!(back == large);
    });
}

#[test]
fn what_several_say_at_the_same_time_goes_out_together() {
    run(async {
        let (lanes, mut there) = raw();
        let mut all: Vec<Lane> = (0..3).map(|_| lanes.open().unwrap()).collect();
        for lane in &mut all {
            lane.write_all(b"hello").await.unwrap();
        }
        let mut bytes = vec![0; 1_000];
        let count = there.read(&mut bytes).await.unwrap();
        let opened = (1..=3).flat_map(|lane| frame(lane, Kind::Open, b""));
        let said = (1..=3).flat_map(|lane| frame(lane, Kind::Data, b"hello"));
        assert_eq!(bytes[..count], opened.chain(said).collect::<Vec<_>>());
    });
}

/// What becomes of a lane that has heard "ok" when the other end says this.
async fn after(said: &[u8]) -> (String, bool) {
    let (lanes, mut there) = raw();
    let mut lane = lanes.open().unwrap();
    there.write_all(&frame(1, Kind::Data, b"ok")).await.unwrap();
    there.write_all(said).await.unwrap();
    if said.is_empty() {
        there.shutdown().await.unwrap();
    }
    let mut heard = Vec::new();
    let ended = lane.read_to_end(&mut heard).await;
    let how = ended.map_or_else(|error| error.to_string(), |_| String::from_utf8_lossy(&heard).into_owned());
    (how, lanes.takes_more())
}

#[test]
fn what_ends_a_lane_and_what_the_connection() {
    let table: [(&str, Vec<u8>, &str, bool); 5] = [
        ("an end", frame(1, Kind::End, b""), "ok", true),
        ("a reset", frame(1, Kind::Reset, b""), "the other agent broke it off", true),
        ("the end of the connection", Vec::new(), "the other agent closed the connection", false),
        ("leaving", [frame(0, Kind::Leaving, b""), frame(1, Kind::End, b"")].concat(), "ok", false),
        (
            "what is against the rules",
            frame(9, Kind::End, b""),
            "a End frame on lane 9, which was never opened",
            false,
        ),
    ];
    run(async {
        for (name, said, how, goes_on) in table {
            assert_eq!(after(&said).await, (how.to_owned(), goes_on), "{name}");
        }
    });
}

#[test]
fn a_connection_that_nobody_asks_lanes_of_ends_with_its_last() {
    run(async {
        for leaves in [false, true] {
            let (lanes, mut there) = raw();
            let lane = lanes.open().unwrap();
            let kept = if leaves {
                there.write_all(&frame(0, Kind::Leaving, b"")).await.unwrap();
                Some(lanes)
            } else {
                drop(lanes);
                None
            };
            let mut heard = vec![0; 8];
            there.read_exact(&mut heard).await.unwrap();
            assert_eq!(heard, frame(1, Kind::Open, b""));
            drop(lane);
            heard.clear();
            there.read_to_end(&mut heard).await.unwrap();
            assert_eq!(heard, frame(1, Kind::Reset, b""));
            drop(kept);
        }
    });
}

#[test]
fn who_opens_lanes_faster_than_they_end_here_waits() {
    run(async {
        let (here, mut there) = duplex(10 * REPLY_WINDOW_BYTES);
        let mut driver = Driver::accepting(here);
        let count = u32::try_from(LANES_MAX).unwrap();
        for lane in 1..=count + 1 {
            there.write_all(&frame(lane, Kind::Open, b"")).await.unwrap();
            there.write_all(&frame(lane, Kind::Reset, b"")).await.unwrap();
        }
        let mut taken = Vec::new();
        for _ in 0..count {
            taken.push(driver.next().await.unwrap().unwrap());
        }
        let mut next = pin!(driver.next());
        let waits = std::future::poll_fn(|cx| std::task::Poll::Ready(next.as_mut().poll(cx).is_pending()));
        assert!(waits.await, "each is over, and none is closed here");
        taken.pop();
        assert!(next.await.unwrap().is_some());
    });
}

#[test]
fn who_takes_nothing_and_goes_on_is_left() {
    run(async {
        let (here, mut there) = duplex(PIPE_BYTES);
        let mut driver = Driver::accepting(here);
        spawn_local(async move {
            for lane in 1..=u32::MAX {
                if there.write_all(&frame(lane, Kind::Open, b"")).await.is_err() {
                    return;
                }
            }
        });
        let mut opened = 0;
        let why = loop {
            match driver.next().await {
                Ok(lane) => drop(lane), // it says so each time
                Err(why) => break why.to_string(),
            }
            opened += 1;
        };
        assert_eq!(why, "the other agent takes nothing");
        // What was sent, and what came before it was looked at, are of a pipe.
        assert!(opened <= (STUCK_BYTES + 3 * PIPE_BYTES) / HEADER_BYTES, "{opened}");
    });
}

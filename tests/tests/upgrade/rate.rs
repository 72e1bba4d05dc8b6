//! Connections at a set rate, from both places, while agents come and go.

use std::net::TcpStream;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use toolgate::netns::CANARY;
use toolgate_tests::{Caller, PATIENCE};

use crate::UPGRADES;
use crate::places::{Places, answer};

/// New connections a second of each of the two places, in the test with a rate.
const RATE: u32 = 110;
/// Of both together, at least.
const RATE_MIN: f64 = 200.0;

/// Connects to the canary at `RATE`, by the clock, until `is_over` hangs up: when each connection was made. Each must be
/// answered by an agent; who waits for an answer does not hold up the next connect.
fn paced(caller: &mut Caller, is_over: &mpsc::Receiver<()>) -> Result<Vec<Instant>> {
    let (made, to_answer) = mpsc::channel::<TcpStream>();
    std::thread::scope(|scope| {
        let answers = scope.spawn(move || -> Result<()> {
            for mut stream in to_answer {
                stream.set_read_timeout(Some(PATIENCE))?;
                answer(&mut stream)?;
            }
            Ok(())
        });
        let (begun, mut times) = (Instant::now(), Vec::new());
        for number in 0.. {
            let due = begun + Duration::from_secs(1) * number / RATE;
            let until = due.saturating_duration_since(Instant::now());
            if is_over.recv_timeout(until) != Err(mpsc::RecvTimeoutError::Timeout) {
                break;
            }
            let connected = caller.connect(CANARY).with_context(|| format!("connection {number}"))?;
            times.push(Instant::now());
            // No receiver: an answer was wrong, which its thread says.
            let _ = made.send(connected.stream);
        }
        drop(made);
        answers.join().map_err(|_panic| anyhow::anyhow!("the reader panicked"))??;
        Ok(times)
    })
}

#[test]
fn a_hand_over_at_a_set_rate_refuses_nobody_at_home_or_in_another_namespace() -> Result<()> {
    let mut places = Places::set()?;
    let mut hand_overs = Vec::new();
    let (agent, callers) = (&mut places.agent, [&mut places.home, &mut places.inside]);
    let times = std::thread::scope(|scope| -> Result<Vec<Vec<Instant>>> {
        let load = callers.map(|caller| {
            let (goes_on, is_over) = mpsc::channel();
            (goes_on, scope.spawn(move || paced(caller, &is_over)))
        });
        let upgraded = (0..UPGRADES).try_for_each(|_| {
            let begun = Instant::now();
            agent.upgrade(&[])?;
            hand_overs.push((begun, Instant::now()));
            Ok(())
        });
        let threads = load.map(|(goes_on, thread)| {
            drop(goes_on);
            thread
        });
        let join = |thread: std::thread::ScopedJoinHandle<'_, Result<Vec<Instant>>>| {
            thread.join().map_err(|_panic| anyhow::anyhow!("the load panicked"))?
        };
        let times = threads.into_iter().map(join).collect();
        upgraded.and(times)
    });
    let times = times.with_context(|| places.agent.process().said())?;
    for (begun, ended) in hand_overs {
        let counts: Vec<usize> =
            times.iter().map(|made| made.iter().filter(|at| (begun..=ended).contains(*at)).count()).collect();
        let (took, all) = ((ended - begun).as_secs_f64(), counts.iter().sum::<usize>());
        println!(
            "a hand-over of {took:.2} s: {} connections from home, {} from another namespace, 0 refused",
            counts[0], counts[1]
        );
        ensure!(all as f64 / took >= RATE_MIN, "{all} in {took:.2} s are too few");
    }
    Ok(())
}

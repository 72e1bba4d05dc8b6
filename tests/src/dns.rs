//! A name server whose answers are the test's own, by UDP and TCP at port 53.

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context as _, Result};
use hickory_resolver::proto::op::{Message, OpCode, ResponseCode};
use hickory_resolver::proto::rr::rdata::{A, AAAA, SRV};
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use hickory_resolver::proto::serialize::binary::{BinDecodable as _, BinEncodable as _};

/// The most bytes of an answer by UDP; a longer one is asked for by TCP.
const UDP_BYTES_MAX: usize = 1232;

/// Dropped: it answers no more, and its port is free.
#[derive(Debug)]
pub struct Dns {
    answers: Answers,
    udp: UdpSocket,
    tcp: SocketAddr,
    has_ended: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

type Answers = Arc<Mutex<HashMap<String, Answer>>>;

#[derive(Clone, Debug)]
enum Answer {
    Addresses(Vec<IpAddr>, u32),
    /// Priority, name and port of each.
    Services(Vec<(u16, String, u16)>),
    Silence,
}

impl Dns {
    /// Starts it at port 53 of an address of this host; it knows no name.
    ///
    /// # Errors
    /// Somebody else is there.
    pub fn at(ip: IpAddr) -> Result<Self> {
        let address = SocketAddr::new(ip, 53);
        let udp = UdpSocket::bind(address).with_context(|| format!("cannot bind {address}"))?;
        let tcp = TcpListener::bind(address).with_context(|| format!("cannot listen at {address}"))?;
        let answers = Answers::default();
        let (by_udp, by_tcp) = (Arc::clone(&answers), Arc::clone(&answers));
        let packets = udp.try_clone()?;
        let has_ended = Arc::<AtomicBool>::default();
        let its = Arc::clone(&has_ended);
        let answers_packets = move || {
            let mut packet = [0; 4096];
            while let Ok((length @ 1.., from)) = packets.recv_from(&mut packet) {
                if let Some(answer) = answer(&by_udp, &packet[..length], UDP_BYTES_MAX) {
                    let _who_asked_may_be_gone = packets.send_to(&answer, from);
                }
            }
        };
        let answers_streams = move || {
            for stream in tcp.incoming().flatten() {
                if its.load(Ordering::SeqCst) {
                    return;
                }
                let answers = Arc::clone(&by_tcp);
                std::thread::spawn(move || {
                    let _left = serve(stream, &answers);
                });
            }
        };
        let threads = vec![std::thread::spawn(answers_packets), std::thread::spawn(answers_streams)];
        Ok(Self { answers, udp, tcp: address, has_ended, threads })
    }

    /// From now on a name has these addresses, for so many seconds.
    pub fn has(&self, name: &str, addresses: &[IpAddr], ttl: u32) {
        self.set(name, Answer::Addresses(addresses.to_vec(), ttl));
    }

    /// From now on a service is at these names and ports, what has less priority first.
    pub fn has_service(&self, name: &str, services: &[(u16, &str, u16)]) {
        let services = services.iter().map(|&(priority, name, port)| (priority, name.to_owned(), port));
        self.set(name, Answer::Services(services.collect()));
    }

    /// From now on nothing is said about a name.
    pub fn is_silent_about(&self, name: &str) {
        self.set(name, Answer::Silence);
    }

    /// From now on there is no such name.
    pub fn forgets(&self, name: &str) {
        lock(&self.answers).remove(name);
    }

    fn set(&self, name: &str, answer: Answer) {
        lock(&self.answers).insert(name.to_owned(), answer);
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        // Wakes who waits there, also where the kernel says that nobody was connected.
        let _woken = socket2::SockRef::from(&self.udp).shutdown(Shutdown::Both);
        self.has_ended.store(true, Ordering::SeqCst);
        let _woken = TcpStream::connect(self.tcp);
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}

/// None: silence.
fn answer(answers: &Answers, question: &[u8], bytes_max: usize) -> Option<Vec<u8>> {
    let question = Message::from_bytes(question).ok()?;
    let query = question.queries.first()?.clone();
    let name = query.name().to_utf8().trim_end_matches('.').to_ascii_lowercase();
    let known = lock(answers).get(&name).cloned();
    let mut answer = Message::response(question.metadata.id, OpCode::Query);
    answer.metadata.recursion_available = true;
    answer.metadata.recursion_desired = true;
    answer.add_query(query.clone());
    match known {
        Some(Answer::Silence) => return None,
        None => answer.metadata.response_code = ResponseCode::NXDomain,
        Some(Answer::Services(services)) => {
            for (priority, target, port) in services.iter().filter(|_| query.query_type() == RecordType::SRV)
            {
                let data = RData::SRV(SRV::new(*priority, 0, *port, Name::from_utf8(target).ok()?));
                answer.add_answer(Record::from_rdata(query.name().clone(), 1, data));
            }
        }
        Some(Answer::Addresses(addresses, ttl)) => {
            for address in addresses {
                let data = match (address, query.query_type()) {
                    (IpAddr::V4(ip), RecordType::A) => RData::A(A(ip)),
                    (IpAddr::V6(ip), RecordType::AAAA) => RData::AAAA(AAAA(ip)),
                    _another_kind => continue,
                };
                answer.add_answer(Record::from_rdata(query.name().clone(), ttl, data));
            }
        }
    }
    let whole = answer.to_bytes().ok()?;
    if whole.len() <= bytes_max {
        return Some(whole);
    }
    answer.metadata.truncation = true;
    answer.answers.clear();
    answer.to_bytes().ok()
}

fn serve(mut stream: TcpStream, answers: &Answers) -> Result<()> {
    loop {
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        let mut question = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut question)?;
        let Some(answer) = answer(answers, &question, usize::from(u16::MAX)) else { return Ok(()) };
        let length = u16::try_from(answer.len())?.to_be_bytes();
        stream.write_all(&[&length[..], &answer].concat())?;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

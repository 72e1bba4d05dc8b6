//! The thread that looks names up: what is asked when, and for how long an answer counts.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinSet;

use super::resolver::{Answer, resolve};
use super::{All, Known, NameError, Published, Question};
use crate::limits::{Limit, Limits};

/// How often it is looked whether the host's own files have changed, where names are followed.
const FILES_EVERY: Duration = Duration::from_secs(5);
/// Names that are looked up at once; the others wait.
const AT_ONCE_MAX: usize = 32;
/// The host's own.
const FILES: [&str; 2] = ["/etc/hosts", "/etc/resolv.conf"];

pub(super) fn start(
    published: Arc<Published>,
    wanted: watch::Receiver<BTreeSet<Question>>,
    limits: &Limits,
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let owner = Owner { published, due: HashMap::new(), files: files(), limits: limits.clone() };
    let thread = std::thread::Builder::new().name("toolgate-names".to_owned());
    thread.spawn(move || runtime.block_on(owner.run(wanted))).map(drop)
}

type Looked = (Question, Result<Answer, NameError>);

struct Owner {
    published: Arc<Published>,
    /// When each name is to be looked up; `None`: it is being.
    due: HashMap<Question, Option<Instant>>,
    files: [Option<(u64, i64, i64)>; 2],
    limits: Limits,
}

/// Which state the host's files are in.
fn files() -> [Option<(u64, i64, i64)>; 2] {
    FILES.map(|file| {
        let metadata = std::fs::metadata(file).ok()?;
        Some((metadata.ino(), metadata.mtime(), metadata.mtime_nsec()))
    })
}

impl Owner {
    /// Until nobody wants a name any more.
    async fn run(mut self, mut wanted: watch::Receiver<BTreeSet<Question>>) {
        let mut looking = JoinSet::new();
        let mut tick = tokio::time::interval(FILES_EVERY);
        self.take(&wanted.borrow_and_update().clone());
        loop {
            self.look(&mut looking);
            let next = self.due.values().filter_map(|due| *due).min();
            let next = next.filter(|_| looking.len() < AT_ONCE_MAX);
            let wait = async {
                match next {
                    Some(next) => tokio::time::sleep_until(next.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = wanted.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let names = wanted.borrow_and_update().clone();
                    self.take(&names);
                }
                Some(looked) = looking.join_next() => match looked {
                    Ok(looked) => self.looked(looked),
                    Err(error) => tracing::error!(%error, "a look at a name has failed"),
                },
                _ = tick.tick() => self.look_at_files(),
                () = wait => {}
            }
        }
    }

    /// Follows these names, and those of them at once that are new.
    fn take(&mut self, names: &BTreeSet<Question>) {
        self.due.retain(|name, _| names.contains(name));
        for name in names {
            self.due.entry(name.clone()).or_insert_with(|| Some(Instant::now()));
        }
        self.publish(|known| known.retain(|name, _| names.contains(name)));
    }

    fn look(&mut self, looking: &mut JoinSet<Looked>) {
        let (now, time_max) = (Instant::now(), self.limits.resolve_time_max);
        for (name, due) in &mut self.due {
            if due.is_some_and(|due| due <= now) && looking.len() < AT_ONCE_MAX {
                *due = None;
                let name = name.clone();
                looking.spawn(async move {
                    let looked = resolve(&name, time_max).await;
                    (name, looked)
                });
            }
        }
    }

    /// What the host's files say counts at once.
    fn look_at_files(&mut self) {
        let now = files();
        if self.files != now {
            self.files = now;
            self.due.values_mut().flatten().for_each(|due| *due = Instant::now());
        }
    }

    fn looked(&mut self, (name, looked): Looked) {
        let now = Instant::now();
        let (ttl_min, ttl_max) = (self.limits.name_ttl_min, self.limits.name_ttl_max);
        let Some(due) = self.due.get_mut(&name) else { return };
        let ttl = match &looked {
            Ok(answer) => answer.ttl.unwrap_or(ttl_max).clamp(ttl_min, ttl_max.max(ttl_min)),
            Err(_) => ttl_min,
        };
        *due = Some(now + ttl);
        let before =
            self.published.known.load().get(&name).map(|known| Known::clone(known)).unwrap_or_default();
        let after = before.clone().after(looked, now, &self.limits);
        if before.is_looked_up && before.is_as(&after) {
            // Only the times differ: nobody has to hear of it.
            self.publish_silently(|known| drop(known.insert(name, Arc::new(after))));
            return;
        }
        match &after.error {
            Some(error) => tracing::warn!(%error, kept = after.found.len(), "a Server's name"),
            None => {
                let addresses: Vec<String> = after.found.iter().map(|found| found.ip.to_string()).collect();
                tracing::info!(%name, addresses = addresses.join(" "), "resolved");
                if after.beyond > 0 {
                    let (beyond, limit) = (after.beyond, Limit::AddressesPerName);
                    tracing::warn!(
                        "`{name}` has {beyond} addresses more than are used ({limit}): raise that limit, or name some of them as the \
                         Server's `endpoints`"
                    );
                }
            }
        }
        self.publish(|known| drop(known.insert(name, Arc::new(after))));
    }

    fn publish(&self, change: impl FnOnce(&mut All)) {
        self.publish_silently(change);
        self.published.changed.send_modify(|count| *count += 1);
    }

    /// One thread alone publishes.
    fn publish_silently(&self, change: impl FnOnce(&mut All)) {
        let mut all = All::clone(&self.published.known.load());
        change(&mut all);
        self.published.known.store(Arc::new(all));
    }
}

impl Known {
    /// What is known after another look.
    fn after(mut self, looked: Result<Answer, NameError>, now: Instant, limits: &Limits) -> Self {
        self.is_looked_up = true;
        let max = limits.addresses_per_name_max;
        match looked {
            Ok(Answer { mut found, .. }) => {
                self.beyond = found.len().saturating_sub(max);
                found.truncate(max);
                self.lately.retain(|(one, _)| !found.contains(one));
                let fresh = found.iter().map(|one| (*one, now));
                self.lately = fresh.chain(self.lately).collect();
                (self.found, self.error) = (found, None);
            }
            Err(error) => self.error = Some(error),
        }
        self.lately.retain(|(_, seen)| now.duration_since(*seen) < limits.name_stale_max);
        self.lately.truncate(2 * max);
        let lately = &self.lately;
        self.found.retain(|found| lately.iter().any(|(one, _)| one == found));
        self
    }

    /// Whether it leads to the same, in whatever order: name servers rotate their answers.
    fn is_as(&self, other: &Self) -> bool {
        let found = |known: &Self| known.found.iter().copied().collect::<BTreeSet<_>>();
        let lately = |known: &Self| known.lately.iter().map(|(found, _)| *found).collect::<BTreeSet<_>>();
        self.beyond == other.beyond
            && self.error == other.error
            && found(self) == found(other)
            && lately(self) == lately(other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(ip: &str) -> super::super::Found {
        super::super::Found { priority: 0, ip: ip.parse().unwrap(), port: None }
    }

    fn answer(addresses: &[&str]) -> Result<Answer, NameError> {
        let found = addresses.iter().map(|one| found(one)).collect();
        Ok(Answer { found, ttl: Some(Duration::from_secs(1)) })
    }

    fn failure() -> Result<Answer, NameError> {
        Err(NameError::Missing { name: "a".into(), cause: "no".into() })
    }

    #[test]
    fn addresses_are_kept_for_a_while_when_a_name_leads_nowhere_any_more() {
        let limits = Limits::default();
        let start = Instant::now();
        let stale = start + limits.name_stale_max;
        let first = Known::default().after(answer(&["192.0.2.1", "192.0.2.2"]), start, &limits);
        let failing = first.after(failure(), stale - Duration::from_millis(1), &limits);
        assert_eq!((failing.found.len(), failing.error.is_some()), (2, true));
        let over = failing.after(failure(), stale, &limits);
        assert!(over.found.is_empty() && over.lately.is_empty());
        let back = over.after(answer(&["192.0.2.3"]), stale, &limits);
        assert_eq!((back.found.len(), back.error), (1, None));
    }

    #[test]
    fn an_answer_counts_alone_for_what_is_dialled_and_with_those_before_for_what_is_captured() {
        let limits = Limits::default();
        let start = Instant::now();
        let later = start + Duration::from_secs(60);
        let first = Known::default().after(answer(&["192.0.2.1"]), start, &limits);
        let second = first.clone().after(answer(&["192.0.2.2"]), later, &limits);
        assert_eq!(second.found, [found("192.0.2.2")]);
        assert_eq!(second.lately.len(), 2);
        assert!(!first.is_as(&second));
        let third = second.after(answer(&["192.0.2.2"]), start + limits.name_stale_max, &limits);
        assert_eq!(third.lately.len(), 1, "the first is over");
    }

    #[test]
    fn however_many_addresses_an_answer_has_few_are_used() {
        let limits = Limits::default();
        let many: Vec<String> = (0..1000).map(|n| format!("198.51.{}.{}", n / 250, n % 250)).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let mut known = Known::default();
        for part in 0..4 {
            let turned = [&many[250 * part..], &many[..250 * part]].concat();
            known = known.after(answer(&turned), Instant::now(), &limits);
            assert_eq!(known.found.len(), limits.addresses_per_name_max);
            assert_eq!(known.beyond, 1000 - limits.addresses_per_name_max);
        }
        assert_eq!(known.lately.len(), 2 * limits.addresses_per_name_max);
    }

    #[test]
    fn the_order_of_addresses_is_no_news() {
        let limits = Limits::default();
        let one = Known::default().after(answer(&["192.0.2.1", "192.0.2.2"]), Instant::now(), &limits);
        let other = one.clone().after(answer(&["192.0.2.2", "192.0.2.1"]), Instant::now(), &limits);
        assert!(one.is_as(&other));
    }
}

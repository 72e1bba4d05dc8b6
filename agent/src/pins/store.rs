//! The file: SQLite, one table of definitions. What is committed outlives a kill and a power loss (WAL, synchronous=FULL).

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rusqlite::{Connection, ErrorCode, OpenFlags, Row, params};
use toolgate_core::identity::Identity;
use toolgate_core::pin::{Definition, Digest, Kind, Known, News, Pins};

use super::StoreError;

/// In the state directory.
const FILE: &str = "toolgate.db";
/// `Tlgt`: tells the file from other programs' (SQLite file format, 1.3).
const APPLICATION_ID: i64 = 0x546c_6774;
/// Of the tables below.
const VERSION: i64 = 1;
/// How long another agent, as in an upgrade, may keep the file to itself.
const BUSY_TIME_MAX: Duration = Duration::from_secs(5);
/// Pages in memory, in KiB, negative as SQLite has it.
const CACHE_KIB: i64 = -256;
const MAGIC: &[u8; 16] = b"SQLite format 3\0";

const TABLES: &str = "
CREATE TABLE definitions (
  id INTEGER PRIMARY KEY,
  trust_domain TEXT NOT NULL,
  namespace TEXT NOT NULL,
  app_id TEXT NOT NULL,
  kind TEXT NOT NULL,
  name TEXT NOT NULL,
  digest BLOB NOT NULL,
  text TEXT NOT NULL,
  seen_at INTEGER NOT NULL,
  seen_by TEXT NOT NULL,
  approved_at INTEGER,
  approved_by TEXT,
  UNIQUE (trust_domain, namespace, app_id, kind, name, digest)
) STRICT;";
const OF_ONE: &str =
    "trust_domain = ?1 AND namespace = ?2 AND app_id = ?3 AND kind = ?4 AND name = ?5 AND digest = ?6";

/// One definition of one server, by its keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Whose it is.
    pub server: Identity,
    /// What it defines.
    pub kind: Kind,
    /// Its name.
    pub name: Arc<str>,
    /// Its digest.
    pub digest: Digest,
}

/// What is kept of one, besides what [`Pins`] know.
#[derive(Debug, Clone)]
pub struct Kept {
    /// Its keys.
    pub place: Place,
    /// Its canonical form.
    pub text: String,
    /// When it was first seen.
    pub seen_at: SystemTime,
    /// Who was given it first.
    pub seen_by: String,
    /// When it was approved, and who did that.
    pub approved: Option<(SystemTime, String)>,
}

/// The open file.
pub(super) struct Store {
    connection: Connection,
    path: PathBuf,
}

impl Store {
    /// Opens the store of a state directory, or makes it there (mode 0600), and reads all of it.
    ///
    /// # Errors
    /// [`StoreError`]: the file is left as it is.
    pub(super) fn open(state_directory: &Path) -> Result<(Self, Pins), StoreError> {
        let path = state_directory.join(FILE);
        let file = |cause| StoreError::File { path: path.clone(), cause };
        match fs::symlink_metadata(&path) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => create(state_directory, &path)?,
            Err(error) => return Err(file(error)),
        }
        check_file(&path)?;
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&path, flags);
        let mut store =
            Self { connection: connection.map_err(|cause| sql(&path, cause))?, path: path.clone() };
        store.check()?;
        store.set_up().map_err(|cause| sql(&path, cause))?;
        let pins = store.load()?;
        Ok((store, pins))
    }

    fn check(&mut self) -> Result<(), StoreError> {
        let connection = &self.connection;
        connection.busy_timeout(BUSY_TIME_MAX).map_err(|cause| sql(&self.path, cause))?;
        let number = |pragma: &str| {
            connection
                .pragma_query_value(None, pragma, |row| row.get::<_, i64>(0))
                .map_err(|cause| sql(&self.path, cause))
        };
        if number("application_id")? != APPLICATION_ID {
            let problem = "it is an SQLite database of another program".to_owned();
            return Err(StoreError::Foreign { path: self.path.clone(), problem });
        }
        let found = number("user_version")?;
        if found != VERSION {
            return Err(StoreError::Version { path: self.path.clone(), found, expected: VERSION });
        }
        let checked = connection.pragma_query_value(None, "quick_check", |row| row.get::<_, String>(0));
        match checked.map_err(|cause| sql(&self.path, cause))? {
            ok if ok == "ok" => Ok(()),
            problem => Err(self.damaged(problem)),
        }
    }

    fn set_up(&self) -> rusqlite::Result<()> {
        let connection = &self.connection;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "cache_size", CACHE_KIB)?;
        connection.pragma_update(None, "temp_store", "MEMORY")
    }

    /// What is kept, without the texts. Each must have the digest that it is kept under.
    pub(super) fn load(&self) -> Result<Pins, StoreError> {
        let mut pins = Pins::default();
        for kept in self.read("1 = 1 ORDER BY id", &[])? {
            let Kept { place: Place { server, kind, name, digest }, text, approved, .. } = kept;
            let bytes = text.len();
            let definition = Definition::from_canonical(text);
            if definition.digest != digest {
                let problem = format!("the {} `{name}` of `{server}` is not what was kept", kind.as_str());
                return Err(self.damaged(problem));
            }
            let (is_hiding, is_approved) = (definition.is_hiding, approved.is_some());
            pins.restore(
                &server,
                kind,
                &name,
                Known { digest, bytes, is_hiding, is_approved, changed_at: 0 },
            );
        }
        Ok(pins)
    }

    /// All that is kept of one server.
    pub(super) fn of_server(&self, server: &Identity) -> Result<Vec<Kept>, StoreError> {
        let keys = [server.trust_domain(), server.namespace(), server.app_id()];
        self.read("trust_domain = ?1 AND namespace = ?2 AND app_id = ?3 ORDER BY id", &keys)
    }

    fn read(&self, condition: &str, keys: &[&str]) -> Result<Vec<Kept>, StoreError> {
        let columns = "trust_domain, namespace, app_id, kind, name, digest, text, seen_at, seen_by, approved_at, \
                       approved_by";
        let query = format!("SELECT {columns} FROM definitions WHERE {condition}");
        let rows = || {
            let mut statement = self.connection.prepare(&query)?;
            let rows = statement.query_map(rusqlite::params_from_iter(keys), |row| Ok(kept(row)))?;
            rows.map(|row| row?).collect::<rusqlite::Result<Vec<_>>>()
        };
        rows().map_err(|cause| sql(&self.path, cause))
    }

    /// Keeps what was not known before; one that another agent kept meanwhile stays as it is.
    pub(super) fn insert(&mut self, all: &[(Identity, String, News)]) -> Result<(), StoreError> {
        let now = seconds(SystemTime::now());
        self.change(|connection| {
            let mut statement = connection.prepare(
                "INSERT INTO definitions (trust_domain, namespace, app_id, kind, name, digest, text, seen_at, \
                 seen_by, approved_at, approved_by) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11) \
                 ON CONFLICT DO NOTHING",
            )?;
            for (server, caller, news) in all {
                let approved = news.is_approved.then_some((now, "first_use"));
                statement.execute(params![
                    server.trust_domain(),
                    server.namespace(),
                    server.app_id(),
                    news.seen.kind.as_str(),
                    &*news.seen.name,
                    news.seen.digest.as_bytes(),
                    news.seen.text.as_deref().unwrap_or_default(),
                    now,
                    caller,
                    approved.map(|(at, _)| at),
                    approved.map(|(_, by)| by),
                ])?;
            }
            Ok(())
        })
    }

    /// Approves all of them, or none.
    pub(super) fn approve(&mut self, all: &[Place], by: &str) -> Result<(), StoreError> {
        let now = seconds(SystemTime::now());
        let update = format!("UPDATE definitions SET approved_at = ?7, approved_by = ?8 WHERE {OF_ONE}");
        self.change(|connection| {
            let mut statement = connection.prepare(&update)?;
            each(all, |key| statement.execute(params![key.0, key.1, key.2, key.3, key.4, key.5, now, by]))
        })
    }

    /// Withdraws the approval of some and forgets others: all of it, or nothing.
    pub(super) fn revoke(&mut self, approved: &[Place], pending: &[Place]) -> Result<(), StoreError> {
        let update = format!("UPDATE definitions SET approved_at = NULL, approved_by = NULL WHERE {OF_ONE}");
        let delete = format!("DELETE FROM definitions WHERE {OF_ONE}");
        self.change(|connection| {
            for (sql, all) in [(&update, approved), (&delete, pending)] {
                let mut statement = connection.prepare(sql)?;
                each(all, |key| statement.execute(params![key.0, key.1, key.2, key.3, key.4, key.5]))?;
            }
            Ok(())
        })
    }

    /// One transaction: it is on disk when this returns, or nothing of it happened.
    fn change(&mut self, with: impl FnOnce(&Connection) -> rusqlite::Result<()>) -> Result<(), StoreError> {
        let path = &self.path;
        let changed = || {
            let transaction = self.connection.transaction()?;
            with(&transaction)?;
            transaction.commit()
        };
        changed().map_err(|cause| sql(path, cause))
    }

    fn damaged(&self, problem: String) -> StoreError {
        StoreError::Damaged { path: self.path.clone(), problem }
    }
}

type Keys<'p> = (&'p str, &'p str, &'p str, &'static str, &'p str, &'p [u8; 32]);

/// One that is not there any more is an error: nothing is half done.
fn each(all: &[Place], mut change: impl FnMut(Keys<'_>) -> rusqlite::Result<usize>) -> rusqlite::Result<()> {
    for Place { server, kind, name, digest } in all {
        let (domain, namespace, app_id) = (server.trust_domain(), server.namespace(), server.app_id());
        if change((domain, namespace, app_id, kind.as_str(), name, digest.as_bytes()))? != 1 {
            return Err(rusqlite::Error::QueryReturnedNoRows);
        }
    }
    Ok(())
}

fn kept(row: &Row<'_>) -> rusqlite::Result<Kept> {
    let wrong = |column: usize, what: &str| {
        rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, what.into())
    };
    let text = |column| row.get::<_, String>(column);
    let server =
        Identity::new(&text(0)?, &text(1)?, &text(2)?).map_err(|_| wrong(2, "no name of a server"))?;
    let kind = Kind::named(&text(3)?).ok_or_else(|| wrong(3, "no kind of definition"))?;
    let place = Place { server, kind, name: text(4)?.into(), digest: Digest::from_bytes(row.get(5)?) };
    let approved = row.get::<_, Option<i64>>(9)?.map(time).zip(row.get(10)?);
    Ok(Kept { place, text: text(6)?, seen_at: time(row.get(7)?), seen_by: text(8)?, approved })
}

/// Since 1970.
fn seconds(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

fn time(seconds: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or_default())
}

/// Made beside and renamed: a file of that name is whole, whenever the power goes.
fn create(directory: &Path, path: &Path) -> Result<(), StoreError> {
    let file = |cause| StoreError::File { path: path.to_owned(), cause };
    let beside = |suffix: &str| {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        PathBuf::from(name)
    };
    // SQLite would take it for the log of the new file.
    if let Some(log) = Some(beside("-wal")).filter(|log| log.exists()) {
        let problem = format!("it is gone, and its log `{}` is there", log.display());
        return Err(StoreError::Damaged { path: path.to_owned(), problem });
    }
    let fresh = beside(".fresh");
    let make = || {
        fs::create_dir_all(directory)?;
        match fs::remove_file(&fresh) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)
    };
    let made = make().map_err(file)?;
    let tables = || {
        let connection = Connection::open_with_flags(&fresh, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        connection.pragma_update(None, "application_id", APPLICATION_ID)?;
        connection.pragma_update(None, "user_version", VERSION)?;
        connection.execute_batch(TABLES)
    };
    tables().map_err(|cause| sql(path, cause))?;
    let put = || {
        made.sync_all()?;
        fs::rename(&fresh, path)?;
        File::open(directory)?.sync_all()
    };
    put().map_err(file)
}

/// What SQLite itself would overlook, or make up for.
fn check_file(path: &Path) -> Result<(), StoreError> {
    let file = |cause| StoreError::File { path: path.to_owned(), cause };
    let mut opened = File::open(path).map_err(file)?;
    let found = opened.metadata().map_err(file)?;
    let foreign = |problem: &str| StoreError::Foreign { path: path.to_owned(), problem: problem.to_owned() };
    if !found.is_file() {
        return Err(foreign("it is no file"));
    }
    if found.mode() & 0o077 != 0 {
        return Err(StoreError::Mode { path: path.to_owned(), mode: found.mode() & 0o777 });
    }
    let mut head = [0; MAGIC.len()];
    match opened.read_exact(&mut head) {
        Ok(()) if head == *MAGIC => Ok(()),
        Ok(()) => Err(foreign("it is no SQLite database")),
        Err(_) => {
            let problem = format!("it has {} bytes", found.len());
            Err(StoreError::Damaged { path: path.to_owned(), problem })
        }
    }
}

/// An error of SQLite's that says that the file is not as it was written is one of the file.
fn sql(path: &Path, cause: rusqlite::Error) -> StoreError {
    let path = path.to_owned();
    let of_file =
        matches!(cause.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase));
    let of_values = matches!(
        &cause,
        rusqlite::Error::FromSqlConversionFailure(..)
            | rusqlite::Error::InvalidColumnType(..)
            | rusqlite::Error::Utf8Error(..)
    );
    if of_file || of_values {
        return StoreError::Damaged { path, problem: cause.to_string() };
    }
    StoreError::Sql { path, cause }
}

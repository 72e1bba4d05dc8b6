//! What is committed is there again, what cannot be used is left as it is, and what is not written is not approved.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use rusqlite::Connection;
use toolgate_core::identity::Identity;
use toolgate_core::pin::{Definition, HiddenCharacters, Kind, Mode, Pinning, Seen, Verdict};

use super::{Change, Pins, Which};
use crate::limits::Limits;

const FIRST_USE: Pinning = Pinning { mode: Mode::FirstUse, hidden: HiddenCharacters::Deny };
const ENFORCE: Pinning = Pinning { mode: Mode::Enforce, hidden: HiddenCharacters::Deny };

fn identity(name: &str) -> Identity {
    Identity::new("example.org", "default", name).unwrap()
}

fn seen(name: &str, words: &str) -> Seen {
    let text = format!(r#"{{"description":"{words}","name":"{name}"}}"#);
    Seen::of(Kind::Tool, name, Definition::from_canonical(text))
}

fn open(directory: &Path) -> Result<Pins, String> {
    Pins::open(directory, &Limits::default()).map_err(|error| error.to_string())
}

fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(work)
}

fn verdict(pins: &Pins, name: &str) -> Verdict {
    pins.now().call(&identity("docs"), &identity("x"), (Kind::Tool, name), HiddenCharacters::Deny)
}

fn observe(pins: &Pins, name: &str, words: &str, pinning: Pinning) {
    let all = vec![seen(name, words)];
    run(pins.observe(&identity("docs"), &identity("x"), all, pinning));
}

fn change(pins: &Pins, name: &str, change: Change) {
    let which = Which::Named { kind: "tool".into(), name: name.into(), digest: None, change };
    let chosen = pins.choose(&identity("docs"), &which).unwrap();
    run(pins.change(change, chosen, "root")).unwrap();
}

#[test]
fn what_was_approved_is_so_again_and_the_file_is_for_its_owner_alone() {
    let folder = tempfile::tempdir().unwrap();
    let pins = open(folder.path()).unwrap();
    observe(&pins, "a", "one", FIRST_USE);
    observe(&pins, "b", "one", ENFORCE);
    observe(&pins, "c", "one", ENFORCE);
    change(&pins, "b", Change::Approve);
    // A kill leaves what is on disk: nothing of this process is waited for.
    let copy = tempfile::tempdir().unwrap();
    for file in fs::read_dir(folder.path()).unwrap() {
        let file = file.unwrap();
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{:?}", file.file_name());
        fs::copy(file.path(), copy.path().join(file.file_name())).unwrap();
    }
    let again = open(copy.path()).unwrap();
    let all = ["a", "b", "c"].map(|name| verdict(&again, name));
    assert_eq!(all, [Verdict::Approved, Verdict::Approved, Verdict::NotApproved]);
    // What was seen once is not seen first again.
    change(&again, "a", Change::Revoke);
    observe(&again, "a", "two", FIRST_USE);
    assert_eq!(verdict(&again, "a"), Verdict::NotApproved);
    let which = Which::Named { kind: "tool".into(), name: "a".into(), digest: None, change: Change::Approve };
    let error = again.choose(&identity("docs"), &which).unwrap_err().to_string();
    assert!(error.contains("--digest"), "{error}");
    let kept = run(again.kept(&identity("docs"))).unwrap();
    assert_eq!(kept.len(), 4);
    assert_eq!(kept[1].approved.as_ref().map(|(_, by)| by.as_str()), Some("root"));
    assert_eq!((kept[0].seen_by.as_str(), kept[0].approved.is_none()), ("x", true));
}

/// A store with some pages, whole and closed.
fn filled(folder: &Path) {
    let pins = open(folder).unwrap();
    for number in 0..50 {
        observe(&pins, &format!("tool-{number}"), &"x".repeat(2_000), FIRST_USE);
    }
    drop(pins);
    // The thread closes the file by itself: it is whole when its log is gone.
    while folder.join("toolgate.db-wal").exists() {
        std::thread::yield_now();
    }
}

fn sql(file: &Path, statements: &str) {
    Connection::open(file).unwrap().execute_batch(statements).unwrap();
}

#[test]
fn a_file_that_cannot_be_used_is_named_and_left_as_it_is() {
    type Spoil = fn(&Path);
    let table: [(&str, Spoil, &str); 10] = [
        ("emptied", |file| fs::write(file, "").unwrap(), "is damaged: it has 0 bytes; put back a copy"),
        ("cut in its head", |file| cut(file, 10), "is damaged: it has 10 bytes; put back a copy"),
        ("cut in the middle", |file| cut(file, 20_000), "is damaged"),
        ("overwritten in the middle", |file| overwrite(file, 40_000), "is damaged"),
        (
            "text",
            |file| fs::write(file, "no database, but some text").unwrap(),
            "it is no SQLite database; move it away",
        ),
        (
            "another program's",
            |file| sql(file, "PRAGMA application_id = 7"),
            "of another program; move it away",
        ),
        (
            "of a later version",
            |file| sql(file, "PRAGMA user_version = 2"),
            "has the format 2, and this version reads 1: run",
        ),
        (
            "with another text",
            |file| sql(file, "UPDATE definitions SET text = 'x' WHERE name = 'tool-7'"),
            "is damaged: the tool `tool-7` of `docs` is not what was kept",
        ),
        ("with a kind of its own", |file| sql(file, "UPDATE definitions SET kind = 'x'"), "is damaged"),
        (
            "for others to read",
            |file| fs::set_permissions(file, fs::Permissions::from_mode(0o640)).unwrap(),
            "has mode 640",
        ),
    ];
    for (name, spoil, expected) in table {
        let folder = tempfile::tempdir().unwrap();
        filled(folder.path());
        let file = folder.path().join("toolgate.db");
        spoil(&file);
        let before = fs::read(&file).unwrap();
        let error = open(folder.path()).err().unwrap_or_else(|| panic!("{name}: it opens"));
        assert!(
            error.contains(&format!("`{}`", file.display())) && error.contains(expected),
            "{name}: {error}"
        );
        assert_eq!(fs::read(&file).unwrap(), before, "{name}");
    }
    // Its twin.
    let folder = tempfile::tempdir().unwrap();
    filled(folder.path());
    assert_eq!(verdict(&open(folder.path()).unwrap(), "tool-7"), Verdict::Approved);
}

fn cut(file: &Path, bytes: u64) {
    fs::OpenOptions::new().write(true).open(file).unwrap().set_len(bytes).unwrap();
}

fn overwrite(file: &Path, at: usize) {
    let mut bytes = fs::read(file).unwrap();
    bytes[at..at + 2_000].fill(0xa5);
    fs::write(file, bytes).unwrap();
}

#[test]
fn a_log_without_its_file_is_not_taken_for_another_files() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("toolgate.db-wal"), "x").unwrap();
    let error = open(folder.path()).err().unwrap();
    assert!(error.contains("its log") && error.contains("toolgate.db-wal"), "{error}");
    assert!(!folder.path().join("toolgate.db").exists());
}

#[test]
fn what_is_not_written_is_not_approved_by_itself_and_a_change_counts_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let pins = open(folder.path()).unwrap();
    observe(&pins, "before", "one", FIRST_USE);
    let file = folder.path().join("toolgate.db");
    sql(&file, "ALTER TABLE definitions RENAME TO away");
    observe(&pins, "meanwhile", "one", FIRST_USE);
    observe(&pins, "before", "two", FIRST_USE);
    assert_eq!(
        (verdict(&pins, "meanwhile"), verdict(&pins, "before")),
        (Verdict::NotApproved, Verdict::Changed)
    );
    let chosen = pins.choose(&identity("docs"), &Which::Pending).unwrap();
    assert_eq!(chosen.len(), 2);
    assert!(run(pins.change(Change::Approve, chosen.clone(), "root")).is_err());
    assert_eq!(verdict(&pins, "meanwhile"), Verdict::NotApproved);
    // It is written as soon as it can be.
    sql(&file, "ALTER TABLE away RENAME TO definitions");
    run(pins.change(Change::Approve, chosen, "root")).unwrap();
    drop(pins);
    let again = open(folder.path()).unwrap();
    assert_eq!(
        (verdict(&again, "meanwhile"), verdict(&again, "before")),
        (Verdict::Approved, Verdict::Approved)
    );
}

#[test]
fn all_of_it_is_done_or_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let pins = open(folder.path()).unwrap();
    observe(&pins, "a", "one", ENFORCE);
    observe(&pins, "b", "one", ENFORCE);
    let chosen = pins.choose(&identity("docs"), &Which::Pending).unwrap();
    sql(&folder.path().join("toolgate.db"), "DELETE FROM definitions WHERE name = 'b'");
    assert!(run(pins.change(Change::Approve, chosen, "root")).is_err());
    assert_eq!((verdict(&pins, "a"), verdict(&pins, "b")), (Verdict::NotApproved, Verdict::NotApproved));
    let kept = run(pins.kept(&identity("docs"))).unwrap();
    assert!(kept.iter().all(|kept| kept.approved.is_none()) && kept.len() == 1, "{kept:?}");
}

#[test]
fn a_name_is_revoked_whole_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let pins = open(folder.path()).unwrap();
    observe(&pins, "a", "one", FIRST_USE);
    observe(&pins, "a", "two", ENFORCE);
    let which = Which::Named { kind: "tool".into(), name: "a".into(), digest: None, change: Change::Revoke };
    let chosen = pins.choose(&identity("docs"), &which).unwrap();
    assert_eq!(chosen.len(), 2);
    sql(&folder.path().join("toolgate.db"), "DELETE FROM definitions WHERE approved_at IS NULL");
    assert!(run(pins.change(Change::Revoke, chosen, "root")).is_err());
    let kept = run(pins.kept(&identity("docs"))).unwrap();
    assert!(kept.len() == 1 && kept[0].approved.is_some(), "{kept:?}");
}

#[test]
fn another_agents_changes_are_read_when_it_is_over() {
    let folder = tempfile::tempdir().unwrap();
    let (old, new) = (open(folder.path()).unwrap(), open(folder.path()).unwrap());
    observe(&old, "a", "one", FIRST_USE);
    assert_eq!(verdict(&new, "a"), Verdict::NotApproved);
    run(new.reload()).unwrap();
    assert_eq!(verdict(&new, "a"), Verdict::Approved);
    // It cannot be read: nothing is approved, rather than what was.
    sql(&folder.path().join("toolgate.db"), "UPDATE definitions SET kind = 'x'");
    assert!(run(new.reload()).is_err());
    assert_eq!(verdict(&new, "a"), Verdict::NotApproved);
    observe(&new, "a", "one", FIRST_USE);
    assert_eq!(verdict(&new, "a"), Verdict::NotApproved);
}

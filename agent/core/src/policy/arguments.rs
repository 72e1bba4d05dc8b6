//! The arguments of a call against the predicates of a rule.

use super::predicate::{Predicate, all_hold};
use super::truth::{Budget, Truth};
use crate::mcp::json::{Kind, Name, Value};

/// Which argument: a top-level name, or with a leading `/` a JSON Pointer (RFC 6901).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    text: String,
    tokens: Vec<String>,
}

/// A key that names nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidKey {
    /// No name at all.
    #[error("an empty key names no argument")]
    Empty,
    /// `~` without 0 or 1 (RFC 6901 section 3).
    #[error("`{key}` is no JSON Pointer: `~` is written `~0` and a `/` within a name `~1`")]
    Escape {
        /// What was given.
        key: String,
    },
}

impl Key {
    /// Reads a key.
    ///
    /// # Errors
    /// [`InvalidKey`].
    pub fn new(text: &str) -> Result<Self, InvalidKey> {
        if text.is_empty() {
            return Err(InvalidKey::Empty);
        }
        let tokens = match text.strip_prefix('/') {
            None => vec![text.to_owned()],
            Some(pointer) => pointer
                .split('/')
                .map(unescape)
                .collect::<Option<_>>()
                .ok_or_else(|| InvalidKey::Escape { key: text.to_owned() })?,
        };
        Ok(Self { text: text.to_owned(), tokens })
    }

    /// As it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

fn unescape(token: &str) -> Option<String> {
    let mut name = String::with_capacity(token.len());
    let mut characters = token.chars();
    while let Some(character) = characters.next() {
        match (character, character == '~') {
            (_, false) => name.push(character),
            (_, true) => match characters.next()? {
                '0' => name.push('~'),
                '1' => name.push('/'),
                _ => return None,
            },
        }
    }
    Some(name)
}

/// What an allow rule makes of arguments that no key names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Others {
    /// One of them and the rule does not match.
    Deny,
    /// They are not looked at.
    Allow,
}

/// The conditions of a rule: every predicate of every key must hold, and what no key names follows `others`.
#[derive(Debug, Clone)]
pub struct Arguments {
    predicates: Vec<(Key, Vec<Predicate>)>,
    others: Others,
    named: Named,
    /// For each key, which of the names its first one is.
    firsts: Vec<usize>,
    /// Two of the names that keys begin with are equal to a reader that ignores case.
    names_collide: bool,
}

/// The names that the keys use, as a tree: what a pointer passes through is named only along its way, so that
/// `/filter/limit` leaves `/filter/offset` among the others.
#[derive(Debug, Clone, Default)]
struct Named {
    whole: bool,
    below: Vec<(Name<Box<str>>, Named)>,
}

/// Where a key leads in the arguments of one call.
#[derive(Clone, Copy)]
enum Found<'b> {
    Value(Value<'b>),
    Absent,
    /// A sibling on the way has the same name under case folding: a server may read either.
    Ambiguous,
    Spent,
}

impl Arguments {
    /// The conditions of one rule.
    #[must_use]
    pub fn new(predicates: Vec<(Key, Vec<Predicate>)>, others: Others) -> Self {
        let mut named = Named::default();
        for (key, _) in &predicates {
            named.add(&key.tokens);
        }
        let names: Vec<_> = named.below.iter().map(|(name, _)| name.as_str()).collect();
        let place = |(key, _): &(Key, _)| {
            names.iter().position(|name| key.tokens.first().is_some_and(|first| first == name))
        };
        let firsts = predicates.iter().map(|predicate| place(predicate).unwrap_or(usize::MAX)).collect();
        let names_collide = names
            .iter()
            .enumerate()
            .any(|(at, one)| names.iter().skip(at + 1).any(|other| folds_to(one, other)));
        Self { predicates, others, named, firsts, names_collide }
    }

    /// Each key with its predicates, as written.
    pub fn iter(&self) -> impl Iterator<Item = (&Key, &[Predicate])> {
        self.predicates.iter().map(|(key, predicates)| (key, predicates.as_slice()))
    }

    /// What is made of arguments that no key names.
    #[must_use]
    pub fn others(&self) -> Others {
        self.others
    }

    /// Whether the conditions hold for these arguments; `None` = the call has none.
    pub(super) fn hold(&self, arguments: Option<Value<'_>>, budget: &mut Budget) -> Truth {
        // Rules name few arguments: the vector is for the others.
        let (mut few, mut many) = ([Found::Absent; 8], Vec::new());
        let names = self.named.below.len();
        let found = few.get_mut(..names).unwrap_or_else(|| {
            many.resize(names, Found::Absent);
            &mut many
        });
        if let Some(arguments) = arguments {
            match self.walk(arguments, found, budget) {
                Walked::Whole => {}
                Walked::LeftOut => return Truth::False,
                Walked::Spent => return Truth::Unknown,
            }
        }
        let mut all = Truth::True;
        for ((key, predicates), &first) in self.predicates.iter().zip(&self.firsts) {
            all = all.and(holds(key, predicates, found.get(first), budget));
            if all == Truth::False {
                break;
            }
        }
        all
    }

    /// Finds the members that keys begin with, in one walk over all of them.
    fn walk<'b>(&self, arguments: Value<'b>, found: &mut [Found<'b>], budget: &mut Budget) -> Walked {
        let closed = self.others == Others::Deny;
        if !budget.take(arguments.bytes()) {
            return if closed { Walked::LeftOut } else { Walked::Spent };
        }
        for (name, value) in arguments.keyed_members() {
            let own = self.named.below.iter().zip(&mut *found).find(|((named, _), _)| name.is(named));
            if let Some(((_, below), found)) = own {
                if closed && below.leaves_out(value, budget) {
                    return Walked::LeftOut;
                }
                if let Found::Absent = found {
                    *found = Found::Value(value);
                }
                if !self.names_collide {
                    continue;
                }
            } else if closed {
                return Walked::LeftOut;
            }
            let name = name.text();
            for ((named, _), found) in self.named.below.iter().zip(&mut *found) {
                let named = named.as_str();
                if *named != *name && folds_to(&name, named) {
                    *found = Found::Ambiguous;
                }
            }
        }
        Walked::Whole
    }
}

/// Whether the predicates of a key hold; `found` is where its first name leads.
fn holds(key: &Key, predicates: &[Predicate], found: Option<&Found<'_>>, budget: &mut Budget) -> Truth {
    if predicates.is_empty() {
        return Truth::True;
    }
    let found = match found {
        Some(Found::Value(value)) if key.tokens.len() > 1 => {
            find(key.tokens.get(1..).unwrap_or_default(), *value, budget)
        }
        Some(found) => *found,
        None => Found::Absent,
    };
    match found {
        Found::Value(value) => all_hold(predicates, Some(value), budget),
        Found::Absent => all_hold(predicates, None, budget),
        Found::Ambiguous | Found::Spent => Truth::Unknown,
    }
}

/// How such a walk ended.
enum Walked {
    Whole,
    /// There is an argument that no key names, and none may be.
    LeftOut,
    Spent,
}

fn find<'b>(tokens: &[String], mut value: Value<'b>, budget: &mut Budget) -> Found<'b> {
    for token in tokens {
        if !budget.take(value.bytes()) {
            return Found::Spent;
        }
        let next = match value.kind() {
            Kind::Object => match member(value, token) {
                Ok(next) => next,
                Err(Collision) => return Found::Ambiguous,
            },
            Kind::Array => array_index(token).and_then(|index| value.elements().nth(index)),
            Kind::Null | Kind::Bool | Kind::Number | Kind::String => None,
        };
        match next {
            Some(next) => value = next,
            None => return Found::Absent,
        }
    }
    Found::Value(value)
}

struct Collision;

/// The member `name`, in one walk over the object.
fn member<'b>(object: Value<'b>, name: &str) -> Result<Option<Value<'b>>, Collision> {
    let mut found = None;
    for (key, value) in object.members() {
        if key == name {
            found = Some(value);
        } else if folds_to(&key, name) {
            return Err(Collision);
        }
    }
    Ok(found)
}

/// Whether two different names are equal to a reader that ignores case.
fn folds_to(one: &str, other: &str) -> bool {
    if one.len() == other.len() && one.eq_ignore_ascii_case(other) {
        return true;
    }
    if one.is_ascii() && other.is_ascii() {
        return false;
    }
    // Up and then down: folds `ß` with `SS`, `ſ` with `s` and the Kelvin sign with `k`.
    let fold = |text: &str| text.to_uppercase().to_lowercase();
    fold(one) == fold(other)
}

/// An index as RFC 6901 section 4 writes it: no sign, no leading zero.
fn array_index(token: &str) -> Option<usize> {
    let digits = token.bytes().all(|b| b.is_ascii_digit()) && (token == "0" || !token.starts_with('0'));
    if digits { token.parse().ok() } else { None }
}

impl Named {
    fn add(&mut self, tokens: &[String]) {
        let Some((first, rest)) = tokens.split_first() else {
            self.whole = true;
            return;
        };
        if let Some((_, below)) = self.below.iter_mut().find(|(name, _)| name.as_str() == first) {
            return below.add(rest);
        }
        let mut below = Self::default();
        below.add(rest);
        self.below.push((Name::owned(first), below));
    }

    /// Whether the value holds something that no key names. As deep as the longest pointer.
    #[inline]
    fn leaves_out(&self, value: Value<'_>, budget: &mut Budget) -> bool {
        !self.whole && self.leaves_some_out(value, budget)
    }

    fn leaves_some_out(&self, value: Value<'_>, budget: &mut Budget) -> bool {
        if !budget.take(value.bytes()) {
            return true;
        }
        let child =
            |name: &str| self.below.iter().find(|(named, _)| named.as_str() == name).map(|(_, below)| below);
        let mut left_out =
            |name: &str, value| child(name).is_none_or(|below| below.leaves_out(value, budget));
        match value.kind() {
            Kind::Object => value.members().any(|(name, value)| left_out(&name, value)),
            Kind::Array => value.elements().enumerate().any(|(at, value)| left_out(&at.to_string(), value)),
            // The keys lead further down; a scalar here is something they do not speak of.
            Kind::Null | Kind::Bool | Kind::Number | Kind::String => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::predicate::Literal;
    use super::super::truth::ARGUMENT_BYTES_READ_MAX;
    use super::*;
    use crate::mcp::json::{JsonLimits, Scratch, validate};

    /// Each key must be 1.
    #[test]
    fn a_name_that_another_reader_could_take_for_a_key_leaves_it_open() {
        let table: &[(&[&str], Others, &str, Truth)] = &[
            (&["path"], Others::Allow, r#"{"path":1}"#, Truth::True),
            (&["path"], Others::Allow, r#"{"path":1,"x":2}"#, Truth::True),
            (&["path"], Others::Deny, r#"{"path":1,"x":2}"#, Truth::False),
            (&["path"], Others::Allow, r#"{"path":1,"PATH":1}"#, Truth::Unknown),
            (&["path"], Others::Allow, r#"{"PATH":1,"path":1}"#, Truth::Unknown),
            (&["path"], Others::Deny, r#"{"path":1,"PATH":1}"#, Truth::False),
            (&["p", "key"], Others::Allow, "{\"p\":1,\"key\":1,\"\u{212a}ey\":1}", Truth::Unknown),
            (&["p", "\u{212a}ey"], Others::Allow, "{\"p\":1,\"\u{212a}ey\":1,\"key\":1}", Truth::Unknown),
            (&["path", "PATH"], Others::Deny, r#"{"path":1,"PATH":1}"#, Truth::Unknown),
            (&["path", "PATH"], Others::Deny, r#"{"path":1}"#, Truth::Unknown),
            (&["path", "PATH"], Others::Deny, r#"{"path":2}"#, Truth::False),
            (&["/a/b", "/a/c"], Others::Deny, r#"{"a":{"b":1,"c":1}}"#, Truth::True),
            (&["/a/b", "/a/c"], Others::Deny, r#"{"a":{"b":1,"c":1,"C":1}}"#, Truth::False),
            (&["/a/b", "/a/c"], Others::Allow, r#"{"a":{"b":1,"c":1,"C":1}}"#, Truth::Unknown),
        ];
        for (keys, others, text, expected) in table {
            let is_one = |key: &&str| (Key::new(key).unwrap(), vec![Predicate::Equals(Literal::Number(1.0))]);
            let arguments = Arguments::new(keys.iter().map(is_one).collect(), *others);
            let mut scratch = Scratch::new();
            let value = validate(text.as_bytes(), &mut scratch, &JsonLimits::default()).unwrap();
            let got = arguments.hold(Some(value), &mut Budget::new(ARGUMENT_BYTES_READ_MAX));
            assert_eq!(got, *expected, "{keys:?} {others:?} {text}");
        }
    }
}

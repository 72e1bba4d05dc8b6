//! What a rule may ask of one argument, answered with true, false or "cannot tell".

use regex::Regex;

use super::directory::Directory;
use super::glob::Glob;
use super::spelling::{agreed, has_dot_part, rule_fits};
use super::truth::{Budget, Truth};
use crate::mcp::json::{Kind, Value};

/// Numbers from here on are not exact in a double (2^53), so no predicate is evaluated on them.
pub const NUMBER_MAX: f64 = 9_007_199_254_740_992.0;

/// The most bytes a compiled regular expression may take.
const REGEX_BYTES_MAX: usize = 1024 * 1024;

/// A scalar written in a rule.
#[derive(Debug, Clone, PartialEq)]
pub enum Literal {
    /// JSON null.
    Null,
    /// A boolean.
    Bool(bool),
    /// A number within +-2^53.
    Number(f64),
    /// Text, compared by code point.
    Text(String),
}

/// A JSON type, as JSON Schema names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JsonType {
    /// `null`
    Null,
    /// `boolean`
    Boolean,
    /// `number`, integers included
    Number,
    /// `integer`: a number without a fraction, however it is written
    Integer,
    /// `string`
    String,
    /// `array`
    Array,
    /// `object`
    Object,
}

impl JsonType {
    /// Every type with its name.
    pub const ALL: [(&'static str, Self); 7] = [
        ("null", Self::Null),
        ("boolean", Self::Boolean),
        ("number", Self::Number),
        ("integer", Self::Integer),
        ("string", Self::String),
        ("array", Self::Array),
        ("object", Self::Object),
    ];

    /// The name in JSON Schema.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        Self::ALL.iter().find(|(_, one)| *one == self).map_or("", |(name, _)| name)
    }
}

/// One question about one argument. The order of the variants is that of the documentation.
#[derive(Debug, Clone)]
pub enum Predicate {
    /// The same scalar.
    Equals(Literal),
    /// One of these scalars.
    In(Vec<Literal>),
    /// Text that begins so; with a `/` in it, it begins a path or a URI, whose spelling must leave no doubt.
    Prefix(String),
    /// Text that ends so.
    Suffix(String),
    /// Text that fits, `*` not crossing `/`; text with a `.` or `..` part, or that hides one, cannot be told.
    Glob(Glob),
    /// Text that fits as a whole.
    Regex(Box<Regex>, String),
    /// An absolute path that is the directory or below it once `.`, `..` and `//` are resolved by their letters, also
    /// when it is decoded first.
    Within(Directory),
    /// A number, not less.
    Min(f64),
    /// A number, not more.
    Max(f64),
    /// Text of at most so many code points, or an array of at most so many elements.
    MaxLength(u64),
    /// Of this JSON type.
    Type(JsonType),
    /// Not given (`true`) or given (`false`).
    Absent(bool),
    /// An array with an element of which all of these hold.
    Any(Vec<Predicate>),
    /// An array of whose every element all of these hold.
    Every(Vec<Predicate>),
}

/// A predicate's value that cannot be used.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum InvalidPredicate {
    /// Not a regular expression.
    #[error("`{pattern}` is no regular expression: {fault}")]
    Regex {
        /// What was given.
        pattern: String,
        /// The parser's last line.
        fault: String,
    },
    /// Not an absolute path in its shortest form.
    #[error(
        "`{path}` is no absolute path in its shortest form: begin with `/`, without `.`, `..`, `//` and `\\`"
    )]
    Directory {
        /// What was given.
        path: String,
    },
    /// A number beyond +-2^53.
    #[error("{number} is beyond +-2^53, where numbers are not exact: no argument could be compared with it")]
    Number {
        /// What was given.
        number: f64,
    },
}

impl Predicate {
    /// Its key in a rule.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Equals(_) => "equals",
            Self::In(_) => "in",
            Self::Prefix(_) => "prefix",
            Self::Suffix(_) => "suffix",
            Self::Glob(_) => "glob",
            Self::Regex(..) => "regex",
            Self::Within(_) => "within",
            Self::Min(_) => "min",
            Self::Max(_) => "max",
            Self::MaxLength(_) => "max_length",
            Self::Type(_) => "type",
            Self::Absent(_) => "absent",
            Self::Any(_) => "any",
            Self::Every(_) => "every",
        }
    }

    /// Every key a rule may use, in the order of the documentation.
    pub const NAMES: [&'static str; 14] = [
        "equals",
        "in",
        "prefix",
        "suffix",
        "glob",
        "regex",
        "within",
        "min",
        "max",
        "max_length",
        "type",
        "absent",
        "any",
        "every",
    ];

    /// A regular expression that must fit the whole text.
    ///
    /// # Errors
    /// [`InvalidPredicate::Regex`].
    pub fn regex(pattern: &str) -> Result<Self, InvalidPredicate> {
        let compile = |text: &str| {
            regex::RegexBuilder::new(text).size_limit(REGEX_BYTES_MAX).build().map_err(|error| {
                let fault = error.to_string();
                let fault =
                    fault.lines().next_back().unwrap_or_default().trim_start_matches("error: ").to_owned();
                InvalidPredicate::Regex { pattern: pattern.to_owned(), fault }
            })
        };
        // By itself first: `a)|(b` is whole only once it is wrapped, and would then not be anchored.
        compile(pattern)?;
        Ok(Self::Regex(Box::new(compile(&format!(r"\A(?:{pattern})\z"))?), pattern.to_owned()))
    }

    /// Paths within a directory.
    ///
    /// # Errors
    /// [`InvalidPredicate::Directory`].
    pub fn within(path: &str) -> Result<Self, InvalidPredicate> {
        let directory = Directory::new(path);
        directory.map(Self::Within).ok_or_else(|| InvalidPredicate::Directory { path: path.to_owned() })
    }

    /// Checks a number of a rule.
    ///
    /// # Errors
    /// [`InvalidPredicate::Number`].
    pub fn number(number: f64) -> Result<f64, InvalidPredicate> {
        if number.abs() < NUMBER_MAX { Ok(number) } else { Err(InvalidPredicate::Number { number }) }
    }

    /// Evaluates it on an argument, `None` = not given.
    // By itself: in the loop over several, what each kind needs would be made ready for all.
    #[inline(never)]
    pub(super) fn holds(&self, value: Option<Value<'_>>, budget: &mut Budget) -> Truth {
        if let Self::Absent(absent) = self {
            return Truth::from(value.is_none() == *absent);
        }
        let Some(value) = value else { return Truth::Unknown };
        if !budget.take(value.bytes()) {
            return Truth::Unknown;
        }
        match self {
            Self::Equals(literal) => equals(literal, value),
            Self::In(literals) => among(literals, value),
            Self::Prefix(_) | Self::Suffix(_) | Self::Glob(_) | Self::Regex(..) | Self::Within(_) => {
                value.as_str().map_or(Truth::Unknown, |text| self.holds_for(&text))
            }
            Self::Min(min) => number(value).map_or(Truth::Unknown, |number| Truth::from(number >= *min)),
            Self::Max(max) => number(value).map_or(Truth::Unknown, |number| Truth::from(number <= *max)),
            Self::MaxLength(max) => is_at_most(value, *max),
            Self::Type(kind) => is_type(*kind, value),
            Self::Absent(_) => Truth::Unknown,
            Self::Any(predicates) => any(predicates, value, budget),
            Self::Every(predicates) => every(predicates, value, budget),
        }
    }

    /// Evaluates one that asks about text.
    #[inline(never)]
    fn holds_for(&self, text: &str) -> Truth {
        match self {
            Self::Prefix(prefix) => begins(prefix, text),
            Self::Suffix(suffix) => Truth::from(text.ends_with(suffix.as_str())),
            Self::Glob(glob) => any_path_fits(std::slice::from_ref(glob), text),
            Self::Regex(regex, _) => Truth::from(regex.is_match(text)),
            Self::Within(directory) => agreed(text, |_, reading| directory.contains(reading)),
            Self::Equals(_)
            | Self::In(_)
            | Self::Min(_)
            | Self::Max(_)
            | Self::MaxLength(_)
            | Self::Type(_)
            | Self::Absent(_)
            | Self::Any(_)
            | Self::Every(_) => Truth::Unknown,
        }
    }
}

/// Whether all of these hold for one argument; none at all (`{}`) = anything, absent too.
pub(super) fn all_hold(predicates: &[Predicate], value: Option<Value<'_>>, budget: &mut Budget) -> Truth {
    let mut all = Truth::True;
    for predicate in predicates {
        all = all.and(predicate.holds(value, budget));
        if all == Truth::False {
            break;
        }
    }
    all
}

fn any(predicates: &[Predicate], value: Value<'_>, budget: &mut Budget) -> Truth {
    if value.kind() != Kind::Array {
        return Truth::Unknown;
    }
    let mut found = Truth::False;
    for element in value.elements() {
        found = found.or(all_hold(predicates, Some(element), budget));
        if found == Truth::True {
            break;
        }
    }
    found
}

fn every(predicates: &[Predicate], value: Value<'_>, budget: &mut Budget) -> Truth {
    if value.kind() != Kind::Array {
        return Truth::Unknown;
    }
    let mut all = Truth::True;
    for element in value.elements() {
        all = all.and(all_hold(predicates, Some(element), budget));
        if all == Truth::False {
            break;
        }
    }
    all
}

fn on_text(value: Value<'_>, holds: impl FnOnce(&str) -> Truth) -> Truth {
    value.as_str().map_or(Truth::Unknown, |text| holds(&text))
}

/// Whether a path or a URI fits one of the patterns, in every reading. What one with `.` or `..` parts names is up to
/// who resolves it.
pub(super) fn any_path_fits(globs: &[Glob], text: &str) -> Truth {
    agreed(text, |decodings, reading| {
        if has_dot_part(reading) {
            return Truth::Unknown;
        }
        Truth::from(globs.iter().any(|glob| glob.matches_reading(decodings, reading)))
    })
}

fn begins(prefix: &str, text: &str) -> Truth {
    if !prefix.contains('/') {
        return Truth::from(text.starts_with(prefix));
    }
    agreed(text, |decodings, reading| {
        if has_dot_part(reading) {
            return Truth::Unknown;
        }
        Truth::from(rule_fits(prefix, decodings, |prefix| reading.starts_with(prefix)))
    })
}

/// A number that a double holds exactly enough to be compared.
fn number(value: Value<'_>) -> Option<f64> {
    let text = value.number_text()?;
    // Most are short integers, which a double holds as they are.
    if let Some(number) = short_integer(text) {
        return Some(f64::from(number));
    }
    let number: f64 = text.parse().ok()?;
    (number.abs() < NUMBER_MAX).then_some(number)
}

/// Of at most nine digits, which never overflow.
fn short_integer(text: &str) -> Option<u32> {
    let digit = |number: u32, byte: u8| {
        let value = byte.wrapping_sub(b'0');
        (value < 10).then_some(number * 10 + u32::from(value))
    };
    if text.len() > 9 { None } else { text.bytes().try_fold(0, digit) }
}

fn is_at_most(value: Value<'_>, max: u64) -> Truth {
    let max = usize::try_from(max).unwrap_or(usize::MAX);
    match value.kind() {
        // A code point takes a byte at least, however it is written: most need not be counted.
        Kind::String if value.bytes().saturating_sub(2) <= max => Truth::True,
        Kind::String => on_text(value, |text| Truth::from(text.chars().count() <= max)),
        Kind::Array => Truth::from(value.elements().count() <= max),
        Kind::Null | Kind::Bool | Kind::Number | Kind::Object => Truth::Unknown,
    }
}

fn equals(literal: &Literal, value: Value<'_>) -> Truth {
    match (literal, value.kind()) {
        (Literal::Null, Kind::Null) => Truth::True,
        (Literal::Bool(one), Kind::Bool) => {
            value.as_bool().map_or(Truth::Unknown, |other| Truth::from(*one == other))
        }
        (Literal::Number(one), Kind::Number) =>
        {
            #[expect(clippy::float_cmp, reason = "both are exact: within +-2^53 and read by the same parser")]
            number(value).map_or(Truth::Unknown, |other| Truth::from(*one == other))
        }
        (Literal::Text(one), Kind::String) => on_text(value, |other| Truth::from(one == other)),
        (Literal::Null | Literal::Bool(_) | Literal::Number(_) | Literal::Text(_), _) => Truth::Unknown,
    }
}

/// Of another type than every literal: cannot be told. Else a literal of another type is just another value.
fn among(literals: &[Literal], value: Value<'_>) -> Truth {
    let mut among = Truth::Unknown;
    for literal in literals {
        match equals(literal, value) {
            Truth::True => return Truth::True,
            Truth::False => among = Truth::False,
            Truth::Unknown => {}
        }
    }
    among
}

fn is_type(kind: JsonType, value: Value<'_>) -> Truth {
    match (kind, value.kind()) {
        (JsonType::Null, Kind::Null)
        | (JsonType::Boolean, Kind::Bool)
        | (JsonType::Number, Kind::Number)
        | (JsonType::String, Kind::String)
        | (JsonType::Array, Kind::Array)
        | (JsonType::Object, Kind::Object) => Truth::True,
        (JsonType::Integer, Kind::Number) => {
            number(value).map_or(Truth::Unknown, |number| Truth::from(number.fract() == 0.0))
        }
        (_, Kind::Null | Kind::Bool | Kind::Number | Kind::String | Kind::Array | Kind::Object) => {
            Truth::False
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regexes_are_anchored_whatever_they_hold() {
        let table = [("a|b", "ab", false), ("a|b", "b", true), ("a", "a\n", false), ("(?i)a", "A", true)];
        for (pattern, text, expected) in table {
            let Predicate::Regex(regex, _) = Predicate::regex(pattern).unwrap() else { panic!() };
            assert_eq!(regex.is_match(text), expected, "{pattern} on {text:?}");
        }
        for pattern in ["a)|(b", "(", "(?x)a #"] {
            assert!(Predicate::regex(pattern).is_err(), "{pattern}");
        }
    }

    #[test]
    fn what_is_no_short_integer_is_left_to_the_parser_of_doubles() {
        let table = [
            ("0", Some(0)),
            ("25", Some(25)),
            ("999999999", Some(999_999_999)),
            ("1000000000", None),
            ("-1", None),
            ("1.5", None),
            ("1e3", None),
            ("1E3", None),
        ];
        for (text, expected) in table {
            assert_eq!(short_integer(text), expected, "{text}");
        }
    }

    #[test]
    fn numbers_beyond_exact_are_refused() {
        assert!(Predicate::number(NUMBER_MAX).is_err());
        assert!(Predicate::number(f64::NAN).is_err());
        assert!(Predicate::number(-9_007_199_254_740_991.0).is_ok());
    }
}

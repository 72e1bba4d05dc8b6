//! JSON as the audit has it: written piece by piece into one buffer, nothing allocated between.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use toolgate_core::identity::Identity;

const HEX: &[u8; 16] = b"0123456789abcdef";

/// Writes one line.
pub(super) struct Json<'o>(pub(super) &'o mut Vec<u8>);

impl Json<'_> {
    /// What is JSON already.
    pub(super) fn raw(&mut self, text: &str) -> &mut Self {
        self.0.extend_from_slice(text.as_bytes());
        self
    }

    /// A string.
    pub(super) fn string(&mut self, text: &str) -> &mut Self {
        self.0.push(b'"');
        self.escaped(text);
        self.0.push(b'"');
        self
    }

    /// A part of a string, without quotes around it.
    pub(super) fn escaped(&mut self, text: &str) -> &mut Self {
        let is_plain = |byte: u8| byte >= 0x20 && byte != b'"' && byte != b'\\';
        // All of them are looked at, which is quicker than to stop at the first that is not.
        if text.bytes().fold(true, |all, byte| all & is_plain(byte)) {
            return self.raw(text);
        }
        for byte in text.bytes() {
            match byte {
                b'"' | b'\\' => self.0.extend_from_slice(&[b'\\', byte]),
                b'\n' => self.0.extend_from_slice(b"\\n"),
                0..0x20 => {
                    self.0.extend_from_slice(b"\\u00");
                    self.0.extend([byte >> 4, byte & 15].map(|nibble| HEX[usize::from(nibble)]));
                }
                _plain => self.0.push(byte),
            }
        }
        self
    }

    /// A string, or null.
    pub(super) fn string_or_null(&mut self, text: Option<&str>) -> &mut Self {
        match text {
            Some(text) => self.string(text),
            None => self.raw("null"),
        }
    }

    /// A whole number.
    pub(super) fn number(&mut self, mut number: u64) -> &mut Self {
        let mut digits = [0; 20];
        let mut start = digits.len();
        loop {
            start -= 1;
            digits[start] = b'0' + (number % 10) as u8;
            number /= 10;
            if number == 0 {
                break;
            }
        }
        self.0.extend_from_slice(&digits[start..]);
        self
    }

    /// A whole number as hexadecimal digits.
    pub(super) fn hex_number(&mut self, mut number: u64) -> &mut Self {
        let mut digits = [0; 16];
        let mut start = digits.len();
        loop {
            start -= 1;
            digits[start] = HEX[(number & 15) as usize];
            number >>= 4;
            if number == 0 {
                break;
            }
        }
        self.0.extend_from_slice(&digits[start..]);
        self
    }

    /// An identity as labels, logs and commands show it; its parts need no escapes.
    pub(super) fn name(&mut self, identity: &Identity) -> &mut Self {
        self.raw("\"").raw(identity.app_id());
        if identity.is_in_default_namespace() {
            return self.raw("\"");
        }
        self.raw(".").raw(identity.namespace()).raw("\"")
    }

    /// An array of strings.
    pub(super) fn strings(&mut self, all: &[Arc<str>]) -> &mut Self {
        self.raw("[");
        for (index, text) in all.iter().enumerate() {
            self.raw(if index == 0 { "" } else { "," }).string(text);
        }
        self.raw("]")
    }

    /// Bytes as lower-case hexadecimal digits.
    pub(super) fn hex<const N: usize>(&mut self, bytes: &[u8; N]) -> &mut Self {
        let digits = bytes.map(|byte| [byte >> 4, byte & 15].map(|nibble| HEX[usize::from(nibble)]));
        self.0.extend_from_slice(digits.as_flattened());
        self
    }
}

/// Shows times as RFC 3339 in UTC to the microsecond; a second that was shown before costs next to nothing.
#[derive(Debug, Default)]
pub(super) struct Clock {
    second: Option<u64>,
    /// `2026-07-28T12:34:56.`
    shown: String,
}

impl Clock {
    pub(super) fn show(&mut self, time: SystemTime, json: &mut Json<'_>) {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        if self.second != Some(since.as_secs()) {
            let whole = UNIX_EPOCH + Duration::from_secs(since.as_secs());
            self.shown = humantime::format_rfc3339_seconds(whole).to_string();
            self.shown.pop(); // the Z
            self.shown.push('.');
            self.second = Some(since.as_secs());
        }
        json.raw(&self.shown);
        let micros = since.subsec_micros();
        let digit = |by: u32| b'0' + (micros / by % 10) as u8;
        json.0.extend([100_000, 10_000, 1_000, 100, 10, 1].map(digit));
        json.0.push(b'Z');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(write: impl FnOnce(&mut Json<'_>)) -> String {
        let mut out = Vec::new();
        write(&mut Json(&mut out));
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn strings_are_those_of_a_json_library() {
        for text in ["", "plain", "a\"b\\c", "new\nline\ttab\u{1}\u{1f}\u{7f}", "\u{e9}…\u{1f600}", "/ü\r"]
        {
            let shown = written(|json| {
                json.string(text);
            });
            assert_eq!(serde_json::from_str::<String>(&shown).unwrap(), text, "{shown}");
        }
    }

    #[test]
    fn numbers_digests_and_times() {
        for number in [0, 9, 10, 65_535, u64::MAX] {
            assert_eq!(
                written(|json| {
                    json.number(number);
                }),
                number.to_string()
            );
        }
        assert_eq!(
            written(|json| {
                json.hex(&[0x0f, 0xa0, 0xff]);
            }),
            "0fa0ff"
        );
        for number in [0, 15, 16, 0xdead_beef, u64::MAX] {
            assert_eq!(
                written(|json| {
                    json.hex_number(number);
                }),
                format!("{number:x}")
            );
        }
        for (namespace, shown) in [("default", "\"docs\""), ("team", "\"docs.team\"")] {
            let identity = Identity::new("example.org", namespace, "docs").unwrap();
            assert_eq!(format!("\"{identity}\""), shown);
            assert_eq!(
                written(|json| {
                    json.name(&identity);
                }),
                shown
            );
        }
        let mut clock = Clock::default();
        for micros in [0, 1, 999_999, 1_000_000, 1_790_000_000_123_456] {
            let time = UNIX_EPOCH + Duration::from_micros(micros);
            let shown = written(|json| clock.show(time, json));
            assert_eq!(shown, humantime::format_rfc3339_micros(time).to_string());
        }
    }
}

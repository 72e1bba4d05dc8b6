//! Requests by App ID, as Dapr's sidecars take them: which app is meant, and what of the request is for it.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::error::{HttpError, shortened};
use super::head::RequestHead;
use super::name::Name;
use super::target::{self, Authority};

/// The user of Basic credentials that only address.
const USER: &str = "dapr-app-id";

/// A request by App ID.
#[derive(Debug)]
pub struct Invoked<'b> {
    /// The text that names the app.
    pub app: Cow<'b, str>,
    /// What of its head is for the app: its target is the last part of the one that came.
    pub head: RequestHead<'b>,
    /// What else of it is not.
    pub addressed: Addressed,
}

/// How a request was addressed: what only addresses does not go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addressed {
    /// Its `Authorization` says no more than whom it is for.
    by_credentials: bool,
    /// The text that names the app is a URL, so that the path is the whole one.
    by_url: bool,
}

impl Addressed {
    /// Whether the server is named by its App ID, which may stand for a part of the path too.
    #[must_use]
    pub fn by_app_id(self) -> bool {
        !self.by_url
    }

    /// Whether that header ends here.
    pub(super) fn ends(self, name: Name) -> bool {
        matches!(name, Name::Host | Name::DaprAppId | Name::DaprApiToken)
            || (name == Name::Authorization && self.by_credentials)
    }
}

/// Whom a request by App ID is for: by the header, else Basic credentials, else the path, as Dapr has it. None: nobody.
///
/// # Errors
/// What names an app can be read in two ways, or the path that is for it.
pub fn invoked<'b>(head: &RequestHead<'b>) -> Result<Option<Invoked<'b>>, HttpError> {
    let by_header = head.headers.only(Name::DaprAppId)?.filter(|app| !app.is_empty());
    let by_credentials = head.headers.only(Name::Authorization)?.and_then(credentials);
    let has_credentials = by_credentials.is_some();
    let (app, target) = match (by_header.map(Cow::Borrowed).or(by_credentials.map(Cow::Owned)), head.target) {
        (Some(app), whole) => (app, whole),
        (None, whole) => match target::by_path(whole) {
            Some((app, rest)) => (unescaped(app)?, rest),
            None => return Ok(None),
        },
    };
    let (path, query) = target::split(head.method, target)?;
    let by_url = matches!(App::of(&app), Some(App::Url { .. }));
    let addressed = Addressed { by_credentials: has_credentials, by_url };
    Ok(Some(Invoked { app, head: RequestHead { target, path, query, ..head.clone() }, addressed }))
}

/// The app that Basic credentials name, where they do no more than that.
fn credentials(authorization: &str) -> Option<String> {
    let (scheme, encoded) = authorization.split_once(' ')?;
    let decoded = STANDARD.decode(encoded.trim()).ok().filter(|_| scheme.eq_ignore_ascii_case("Basic"))?;
    let decoded = String::from_utf8(decoded).ok()?;
    let (user, app) = decoded.split_once(':')?;
    user.eq_ignore_ascii_case(USER).then(|| app.to_owned())
}

/// Without percent-escapes, once: what is still one then is no name of anything.
fn unescaped(app: &str) -> Result<Cow<'_, str>, HttpError> {
    if !app.contains('%') {
        return Ok(Cow::Borrowed(app));
    }
    let refused = |problem| HttpError::Target { target: shortened(app.as_bytes()), problem };
    let mut bytes = Vec::with_capacity(app.len());
    let mut parts = app.split('%');
    bytes.extend_from_slice(parts.next().unwrap_or_default().as_bytes());
    for part in parts {
        let digits = part.get(..2).filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let byte = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        bytes.push(byte.ok_or_else(|| refused("it has a `%` that begins no escape"))?);
        bytes.extend_from_slice(part.get(2..).unwrap_or_default().as_bytes());
    }
    if !bytes.iter().all(u8::is_ascii_graphic) {
        return Err(refused("an escape in it hides what no App ID and no URL has"));
    }
    String::from_utf8(bytes).map(Cow::Owned).map_err(|_| refused("it is no text"))
}

/// What a text that names an app means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum App<'t> {
    /// An App ID, alone or with its namespace.
    Id {
        /// The App ID, without its namespace.
        app_id: &'t str,
        /// None: the caller's own.
        namespace: Option<&'t str>,
    },
    /// A server by its URL.
    Url {
        /// By TLS.
        is_https: bool,
        /// Where it is.
        authority: Authority<'t>,
    },
}

impl<'t> App<'t> {
    /// None: it means nothing. What it is by itself is not looked at here: whoever has no such name says so.
    #[must_use]
    pub fn of(text: &'t str) -> Option<Self> {
        let Some((scheme, rest)) = text.split_once("://") else {
            let (app_id, namespace) = match text.split_once('.') {
                Some((app_id, namespace)) => (app_id, Some(namespace)),
                None => (text, None),
            };
            return Some(Self::Id { app_id, namespace });
        };
        let is_https = scheme.eq_ignore_ascii_case("https");
        if !is_https && !scheme.eq_ignore_ascii_case("http") {
            return None;
        }
        let authority = Authority::read(rest, Some(if is_https { 443 } else { 80 }))?;
        Some(Self::Url { is_https, authority })
    }
}

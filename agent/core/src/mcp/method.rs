//! The methods of every revision of MCP up to 2026-07-28: who sends them, and what kind of permission each needs.

use super::revision::Revision;

/// What a list lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ListKind {
    /// `tools/list`
    Tools,
    /// `resources/list`
    Resources,
    /// `resources/templates/list`
    ResourceTemplates,
    /// `prompts/list`
    Prompts,
}

/// The lists that a message is about.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lists {
    /// `tools/list`
    pub tools: bool,
    /// `resources/list` and `resources/templates/list`
    pub resources: bool,
    /// `prompts/list`
    pub prompts: bool,
}

/// What decides about a method.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// Whoever may anything at all: the handshake, liveness, and what refers to an earlier call in its session.
    Handshake,
    /// A list: as the handshake, its reply filtered.
    List(ListKind),
    /// `tools/call`: the tool's name.
    Tool,
    /// Reading a resource or subscribing to it: its URI.
    Resource,
    /// `prompts/get`: the prompt's name.
    Prompt,
    /// `completion/complete`: the prompt or resource it refers to.
    Completion,
    /// `subscriptions/listen`: what it names.
    Listen,
    /// A task by its id: follows the tool whose call made it.
    Task,
    /// All tasks: what the handshake rules let any caller make, its reply filtered.
    Tasks,
    /// What only a server sends: never valid from a client.
    ServerToClient,
    /// No method of MCP: needs a rule that names it.
    Unknown,
}

/// What a server may ask of its caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ServerAsks {
    /// `sampling/createMessage`: what the caller's model says.
    Sampling,
    /// `elicitation/create`: what the caller's user says or does.
    Elicitation,
    /// `roots/list`: which folders the caller works in.
    Roots,
}

impl ServerAsks {
    /// Each of them.
    pub const ALL: [Self; 3] = [Self::Sampling, Self::Elicitation, Self::Roots];

    /// As rules name it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sampling => "sampling",
            Self::Elicitation => "elicitation",
            Self::Roots => "roots",
        }
    }
}

/// One row per method, so that name, variant and class cannot drift apart.
macro_rules! methods {
    ($($variant:ident $name:literal $class:expr, $clients:ident $servers:ident $(, asks $($asks:ident)+)?;)*) => {
        /// A method of MCP.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Method {
            $(#[doc = concat!("`", $name, "`")] $variant,)*
            /// None of them.
            Other,
        }

        impl Method {
            /// All but [`Method::Other`].
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The method of that exact name.
            #[must_use]
            pub fn from_name(name: &str) -> Self {
                match name {
                    $($name => Self::$variant,)*
                    _ => Self::Other,
                }
            }

            /// Its name; `other` for [`Method::Other`], so that it can be a label.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                    Self::Other => "other",
                }
            }

            /// What decides about it.
            #[must_use]
            pub fn class(self) -> Class {
                match self {
                    $(Self::$variant => $class,)*
                    Self::Other => Class::Unknown,
                }
            }

            /// The revisions in which clients send it.
            #[must_use]
            pub fn clients(self) -> &'static [Revision] {
                match self {
                    $(Self::$variant => $clients,)*
                    Self::Other => NEVER,
                }
            }

            /// The revisions in which servers send it.
            #[must_use]
            pub fn servers(self) -> &'static [Revision] {
                match self {
                    $(Self::$variant => $servers,)*
                    Self::Other => NEVER,
                }
            }

            /// As a request of a server: what it asks for, one of which must be permitted. None: no rule can permit it.
            #[must_use]
            pub fn server_asks(self) -> &'static [ServerAsks] {
                match self {
                    $(Self::$variant => &[$($(ServerAsks::$asks),+)?],)*
                    Self::Other => &[],
                }
            }
        }
    };
}

const ALWAYS: &[Revision] = &Revision::ALL;
const NEVER: &[Revision] = &[];
const SESSIONS: &[Revision] =
    &[Revision::November2024, Revision::March2025, Revision::June2025, Revision::November2025];
const STATELESS: &[Revision] = &[Revision::July2026];
const ELICITATION: &[Revision] = &[Revision::June2025, Revision::November2025];
const NOVEMBER: &[Revision] = &[Revision::November2025];
/// In the later one as the extension `io.modelcontextprotocol/tasks`.
const TASKS: &[Revision] = &[Revision::November2025, Revision::July2026];

// Name, what decides about it where a client sends it, the revisions in which clients and in which servers do, what a
// server asks for with it. A server's `tasks/*` are about what it was let ask as a task (MCP 2025-11-25); the task is the client's.
methods! {
    Initialize "initialize" Class::Handshake, SESSIONS NEVER;
    Initialized "notifications/initialized" Class::Handshake, SESSIONS NEVER;
    Ping "ping" Class::Handshake, SESSIONS SESSIONS;
    Discover "server/discover" Class::Handshake, STATELESS NEVER;
    ToolsList "tools/list" Class::List(ListKind::Tools), ALWAYS NEVER;
    ToolsCall "tools/call" Class::Tool, ALWAYS NEVER;
    ResourcesList "resources/list" Class::List(ListKind::Resources), ALWAYS NEVER;
    ResourceTemplatesList "resources/templates/list" Class::List(ListKind::ResourceTemplates), ALWAYS NEVER;
    ResourcesRead "resources/read" Class::Resource, ALWAYS NEVER;
    ResourcesSubscribe "resources/subscribe" Class::Resource, SESSIONS NEVER;
    ResourcesUnsubscribe "resources/unsubscribe" Class::Resource, SESSIONS NEVER;
    PromptsList "prompts/list" Class::List(ListKind::Prompts), ALWAYS NEVER;
    PromptsGet "prompts/get" Class::Prompt, ALWAYS NEVER;
    Complete "completion/complete" Class::Completion, ALWAYS NEVER;
    SetLevel "logging/setLevel" Class::Handshake, SESSIONS NEVER;
    Cancelled "notifications/cancelled" Class::Handshake, ALWAYS ALWAYS;
    Progress "notifications/progress" Class::Handshake, SESSIONS ALWAYS;
    Message "notifications/message" Class::ServerToClient, NEVER ALWAYS;
    ToolsListChanged "notifications/tools/list_changed" Class::ServerToClient, NEVER ALWAYS;
    ResourcesListChanged "notifications/resources/list_changed" Class::ServerToClient, NEVER ALWAYS;
    ResourcesUpdated "notifications/resources/updated" Class::ServerToClient, NEVER ALWAYS;
    PromptsListChanged "notifications/prompts/list_changed" Class::ServerToClient, NEVER ALWAYS;
    RootsListChanged "notifications/roots/list_changed" Class::Handshake, SESSIONS NEVER;
    TasksGet "tasks/get" Class::Task, TASKS NOVEMBER, asks Sampling Elicitation;
    TasksResult "tasks/result" Class::Task, NOVEMBER NOVEMBER, asks Sampling Elicitation;
    TasksUpdate "tasks/update" Class::Task, STATELESS NEVER;
    TasksCancel "tasks/cancel" Class::Task, TASKS NOVEMBER, asks Sampling Elicitation;
    TasksList "tasks/list" Class::Tasks, NOVEMBER NOVEMBER, asks Sampling Elicitation;
    TasksStatus "notifications/tasks/status" Class::Handshake, NOVEMBER NOVEMBER;
    TasksChanged "notifications/tasks" Class::ServerToClient, NEVER STATELESS;
    SubscriptionsListen "subscriptions/listen" Class::Listen, STATELESS NEVER;
    SubscriptionsAcknowledged "notifications/subscriptions/acknowledged" Class::ServerToClient, NEVER STATELESS;
    SamplingCreate "sampling/createMessage" Class::ServerToClient, NEVER SESSIONS, asks Sampling;
    ElicitationCreate "elicitation/create" Class::ServerToClient, NEVER ELICITATION, asks Elicitation;
    ElicitationComplete "notifications/elicitation/complete" Class::ServerToClient, NEVER NOVEMBER;
    RootsList "roots/list" Class::ServerToClient, NEVER SESSIONS, asks Roots;
}

#[cfg(test)]
mod tests {
    use super::{Class, Method};

    #[test]
    fn every_method_keeps_its_name() {
        assert_eq!(Method::ALL.len(), 36);
        for &method in Method::ALL {
            assert_eq!(Method::from_name(method.as_str()), method);
            assert_ne!(method.class(), Class::Unknown, "{method:?}");
        }
    }

    #[test]
    fn other_names_are_unknown() {
        for name in
            ["", "other", "tools/Call", "tools/call ", "tools", "notifications/", "TOOLS/CALL", "tools/call/"]
        {
            assert_eq!(Method::from_name(name), Method::Other, "{name:?}");
            assert_eq!(Method::from_name(name).class(), Class::Unknown);
        }
    }
}

use super::*;

#[test]
fn default_file_states_the_defaults() {
    let source = source::Source { file: "default.yaml".into(), text: DEFAULT.to_owned() };
    assert_eq!(agent::parse(&source), Ok(AgentConfig::default()));
}

use super::*;

mod files;
mod keys_file;
mod messages;
mod values;

/// Returns the error lines for an invalid text, without the file name.
fn errors(text: &str) -> Vec<String> {
    let errors = Config::parse(text, "t.toml").expect_err("the text is accepted");
    let lines: Vec<String> = errors.to_string().lines().map(str::to_owned).collect();
    assert_eq!(lines.len(), errors.problems().len(), "a message with a line break: {lines:?}");
    lines.iter().map(|line| line.strip_prefix("t.toml:").unwrap().to_owned()).collect()
}

fn error(text: &str) -> String {
    let [only] = <[String; 1]>::try_from(errors(text)).unwrap();
    only
}

fn warnings(text: &str) -> Vec<String> {
    let config = Config::parse(text, "t.toml").unwrap();
    config.warnings.iter().map(|warning| warning.to_string().strip_prefix("t.toml:").unwrap().to_owned()).collect()
}

fn parse(text: &str) -> Config {
    let config = Config::parse(text, "t.toml").unwrap();
    assert_eq!(config.warnings, []);
    config
}

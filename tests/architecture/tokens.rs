//! A minimal Rust lexer that finds the words of a file. It skips comments and literals.

/// A word or a punctuation character (or `::`), with its line.
#[derive(Clone, Debug)]
pub(crate) struct Token {
    pub(crate) text: String,
    pub(crate) line: usize,
}

impl Token {
    pub(crate) fn is(&self, text: &str) -> bool {
        self.text == text
    }

    pub(crate) fn is_word(&self) -> bool {
        self.text.starts_with(is_word_char)
    }
}

pub(crate) fn tokens(source: &str) -> Vec<Token> {
    let mut lexer = Lexer { rest: source, line: 1 };
    let mut tokens = Vec::new();
    while !lexer.rest.is_empty() {
        let line = lexer.line;
        tokens.extend(lexer.next().map(|text| Token { text, line }));
    }
    tokens
}

/// Returns whether the texts of `tokens` start with `texts`.
pub(crate) fn starts_with(tokens: &[Token], texts: &[&str]) -> bool {
    tokens.len() >= texts.len() && tokens.iter().zip(texts).all(|(token, text)| token.is(text))
}

struct Lexer<'s> {
    rest: &'s str,
    line: usize,
}

impl Lexer<'_> {
    /// Consumes a token and returns its text, or consumes skipped text and returns `None`.
    fn next(&mut self) -> Option<String> {
        let rest = self.rest;
        if rest.starts_with("//") {
            self.take(rest.find('\n').unwrap_or(rest.len()));
            return None;
        }
        if rest.starts_with("/*") {
            self.block_comment();
            return None;
        }
        if let Some(len) = raw_string(rest).or_else(|| quoted(rest)) {
            self.take(len);
            return None;
        }
        let word = rest.find(|c| !is_word_char(c)).unwrap_or(rest.len());
        let len = if word > 0 {
            word
        } else if rest.starts_with("::") {
            2
        } else {
            rest.chars().next().map_or(0, char::len_utf8)
        };
        let text = self.take(len);
        (!text.trim().is_empty()).then_some(text)
    }

    fn take(&mut self, len: usize) -> String {
        let (taken, rest) = self.rest.split_at(len);
        self.line += taken.matches('\n').count();
        self.rest = rest;
        taken.to_owned()
    }

    fn block_comment(&mut self) {
        let mut depth = 0;
        loop {
            match self.rest.as_bytes() {
                [b'/', b'*', ..] => (depth, _) = (depth + 1, self.take(2)),
                [b'*', b'/', ..] => (depth, _) = (depth - 1, self.take(2)),
                [] => return,
                _ => _ = self.take(self.rest.chars().next().map_or(0, char::len_utf8)),
            }
            if depth == 0 {
                return;
            }
        }
    }
}

fn is_word_char(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Returns the length of the raw string at the start of `text`.
fn raw_string(text: &str) -> Option<usize> {
    let prefix = ["br", "cr", "r"].into_iter().find(|prefix| text.starts_with(prefix))?;
    let after = &text[prefix.len()..];
    let hashes = after.len() - after.trim_start_matches('#').len();
    let body = after[hashes..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    let len = body.find(&end).map_or(body.len(), |at| at + end.len());
    Some(prefix.len() + hashes + 1 + len)
}

/// Returns the length of the string, character or lifetime at the start of `text`.
fn quoted(text: &str) -> Option<usize> {
    let prefix = usize::from(text.starts_with(['b', 'c']));
    let body = &text[prefix..];
    let quote = body.chars().next().filter(|c| ['"', '\''].contains(c))?;
    let mut characters = body.char_indices().skip(1).peekable();
    if quote == '\'' {
        let mut ahead = characters.clone();
        let (first, second) = (ahead.next(), ahead.next());
        let escaped = first.is_some_and(|(_, c)| c == '\\');
        if !escaped && second.is_none_or(|(_, c)| c != '\'') {
            // A lifetime.
            let name = body[1..].find(|c| !is_word_char(c)).unwrap_or(body.len() - 1);
            return Some(prefix + 1 + name);
        }
    }
    while let Some((at, c)) = characters.next() {
        match c {
            '\\' => _ = characters.next(),
            c if c == quote => return Some(prefix + at + 1),
            _ => {}
        }
    }
    Some(text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(source: &str) -> Vec<String> {
        tokens(source).into_iter().map(|token| token.text).collect()
    }

    #[test]
    fn comments_are_skipped() {
        assert_eq!(texts("a // b\nc /* d /* e */ f */ g /// h\n//! i"), ["a", "c", "g"]);
    }

    #[test]
    fn literals_and_lifetimes_are_skipped() {
        assert_eq!(texts(r##"f("x\"y", r#"z"w"#, b"v", br"u\", 'q', '\'', '\n', b'p', "é") r"##), {
            ["f", "(", ",", ",", ",", ",", ",", ",", ",", ",", ")", "r"]
        });
        assert_eq!(texts("&'a str, &'static [T] '_"), ["&", "str", ",", "&", "[", "T", "]"]);
        assert_eq!(texts("b'\"' c"), ["c"]);
    }

    #[test]
    fn words_that_start_like_a_literal_are_words() {
        assert_eq!(texts("bytes crate read b r c"), ["bytes", "crate", "read", "b", "r", "c"]);
    }

    #[test]
    fn tokens_have_their_line() {
        let lines: Vec<usize> = tokens("a\n\"x\ny\" b\n/*\n*/ c::d").iter().map(|token| token.line).collect();
        assert_eq!(lines, [1, 3, 5, 5, 5]);
    }
}

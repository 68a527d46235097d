//! The report as text.

use std::fmt::{self, Write as _};

use super::{Entry, Import, Verdict};

const WIDTH: usize = 100;

const SECTIONS: [(Verdict, &str); 4] = [
    (Verdict::Cannot, "cannot be taken over"),
    (Verdict::Taken, "taken over"),
    (Verdict::Default, "already the default here"),
    (Verdict::Dropped, "dropped"),
];

/// Writes a paragraph per option, without secrets.
impl fmt::Display for Import {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (verdict, name) in SECTIONS {
            let count = self.count(verdict);
            if count == 0 {
                continue;
            }
            writeln!(f, "{name} ({count}):")?;
            for entry in self.entries.iter().filter(|entry| entry.verdict == verdict) {
                let Entry { place, shown, text, .. } = entry;
                f.write_str(&paragraph(&format!("{place}: {shown}: {text}")))?;
            }
            f.write_char('\n')?;
        }
        if !self.differences.is_empty() {
            writeln!(f, "different here, although no option says so:")?;
            for difference in &self.differences {
                f.write_str(&paragraph(difference))?;
            }
            f.write_char('\n')?;
        }
        let counts = SECTIONS.map(|(verdict, name)| format!("{} {name}", self.count(verdict)));
        let total = self.entries.len();
        let options = if total == 1 { "option" } else { "options" };
        write!(f, "{total} {options}: {}", counts.join(", "))
    }
}

/// Breaks a text between words into indented lines, because terminals break it in the middle of words.
fn paragraph(text: &str) -> String {
    let mut lines = String::new();
    let mut line = "  -".to_owned();
    for word in text.split(' ') {
        if line.chars().count() + 1 + word.chars().count() > WIDTH && line.trim().len() > 1 {
            lines += &line;
            lines.push('\n');
            line = "   ".to_owned();
        }
        line.push(' ');
        line += word;
    }
    lines + &line + "\n"
}

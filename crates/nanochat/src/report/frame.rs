//! The frame of an HTML page: its head with the CSS, its foot, text made safe, tables in cards.
//!
//! A page has no script and loads nothing.

use std::fmt::Write;

/// What stands where a section has nothing to show.
pub const MISSING: &str = "<p class=\"none\">not measured</p>\n";

/// The page up to its body.
pub fn open(title: &str) -> String {
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta http-equiv=\"Content-Security-Policy\" \
         content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <title>{}</title>\n<style>\n{}</style>\n</head>\n<body>\n",
        escape(title),
        include_str!("page.css")
    )
}

/// Ends the main part and the page.
pub fn close(out: &mut String, foot: &str) {
    let foot = escape(foot);
    let _ = writeln!(out, "</main>\n<footer><p>{foot}</p></footer>\n</body>\n</html>");
}

/// Text of unknown origin as HTML text or attribute value.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        match c {
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '&' => out += "&amp;",
            '"' => out += "&quot;",
            '\'' => out += "&#39;",
            '\n' | '\t' => out.push(c),
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// A table that scrolls sideways inside its card where the screen is narrow.
pub fn card(out: &mut String, label: &str, class: &str, inside: &str) {
    let _ = writeln!(
        out,
        "<div class=\"card scroll\" tabindex=\"0\" role=\"region\" aria-label=\"{label}\">\
         <table class=\"{class}\">\n{inside}</table></div>"
    );
}

/// The head of a table; from the column `numbers_from` on the cells are numbers.
pub fn columns(names: &[&str], numbers_from: usize) -> String {
    let mut out = String::from("<thead><tr>");
    for (i, name) in names.iter().enumerate() {
        let class = if i >= numbers_from { " class=\"num\"" } else { "" };
        let _ = write!(out, "<th scope=\"col\"{class}>{name}</th>");
    }
    out + "</tr></thead>\n"
}

/// Names and values under a heading.
pub fn facts(title: &str, rows: &[(String, String)]) -> String {
    let mut out =
        format!("<div><h2>{title}</h2>\n<div class=\"card\"><table class=\"facts\"><tbody>\n");
    for (name, value) in rows {
        let (name, value) = (escape(name), escape(value));
        let _ = writeln!(out, "<tr><th scope=\"row\">{name}</th><td>{value}</td></tr>");
    }
    out + "</tbody></table></div></div>\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_leaves_its_element() {
        let nasty = "<script>alert(1)</script>\"' onload=x & \u{7}";
        let safe = escape(nasty);
        assert!(!safe.contains(['<', '>', '"', '\'', '\u{7}']));
        assert!(safe.starts_with("&lt;script&gt;alert(1)&lt;/script&gt;&quot;&#39; onload"));
    }
}

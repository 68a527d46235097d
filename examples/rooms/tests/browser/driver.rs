//! What the tests do with a browser, whichever it is.

use serde_json::{Value, json};

use crate::webdriver::Browser;

/// A browser. Each window has a handle.
pub(crate) trait Driver: Sync {
    /// The name in the table.
    fn name(&self) -> &'static str;

    /// Opens a window. `preload` runs in each of its pages, before the scripts of the page.
    fn open(&self, preload: &str) -> Value;

    fn navigate(&self, window: &Value, url: &str);

    /// Runs a script in the page and returns its result. The script ends by calling its last argument with the result.
    fn execute_async(&self, window: &Value, script: &str, arguments: &[Value]) -> Value;
}

impl Driver for Browser {
    fn name(&self) -> &'static str {
        "Chromium"
    }

    fn open(&self, preload: &str) -> Value {
        let window = self.in_session("POST", "/window/new", &json!({ "type": "window" }))["handle"].take();
        switch_to(self, &window);
        self.devtools("Page.addScriptToEvaluateOnNewDocument", &json!({ "source": preload }));
        window
    }

    fn navigate(&self, window: &Value, url: &str) {
        switch_to(self, window);
        self.navigate(url);
    }

    fn execute_async(&self, window: &Value, script: &str, arguments: &[Value]) -> Value {
        switch_to(self, window);
        self.execute_async(script, arguments)
    }
}

/// Sends further commands to a window.
pub(crate) fn switch_to(browser: &Browser, window: &Value) {
    browser.in_session("POST", "/window", &json!({ "handle": window }));
}

//! Forms of answers: JSON schemas as constraints on ids.

use std::sync::Arc;

use nanochat_engine::batch::Constraint;

use crate::app::App;
use crate::error::ApiError;
use crate::openai::request::Asked;
use crate::openai::tools::Tools;

/// The constraint that a request asks for.
pub(crate) async fn constraint(
    _app: &Arc<App>,
    asked: &Asked,
    _tools: Tools,
) -> Result<Option<Box<dyn Constraint>>, ApiError> {
    if asked.format_is_text() {
        return Ok(None);
    }
    Err(ApiError::field("response_format", "response_format is not ready"))
}

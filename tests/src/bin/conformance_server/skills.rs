//! Skills (extension of 2026-07-28, SEP-2640): which there are, and the folders that their files are in. Files are
//! resources like any other.

use rmcp::ErrorData;
use rmcp::model::{
    DIRECTORY_MIME_TYPE, ListSkillsResult, PaginatedRequestParams, Resource, ResourceContents, SKILL_MD,
    Skill, SkillFrontmatter, SkillResource, SkillResources,
};
use serde::Deserialize;

use crate::catalogue::{Catalogue, Document};

/// One skill.
#[derive(Debug, Deserialize)]
pub(crate) struct Outline {
    /// Of its folder, with the last slash.
    folder: String,
    /// As at the head of its `SKILL.md`.
    frontmatter: SkillFrontmatter,
}

/// A page for each skill; the cursor is its number.
pub(crate) fn page(
    catalogue: &Catalogue,
    asked: Option<PaginatedRequestParams>,
) -> Result<ListSkillsResult, ErrorData> {
    let number = asked.and_then(|asked| asked.cursor).map_or(Ok(0), |cursor| cursor.parse::<usize>());
    let outline =
        number.ok().and_then(|number| catalogue.skills.get(number).map(|outline| (number, outline)));
    let (number, outline) = outline.ok_or_else(|| ErrorData::invalid_params("no such page", None))?;
    let mut list = ListSkillsResult::with_all_items(vec![outline.entry(catalogue)?]);
    let is_last = number + 1 == catalogue.skills.len();
    list.next_cursor = (!is_last).then(|| (number + 1).to_string());
    Ok(list)
}

/// The skill of that `SKILL.md`.
pub(crate) fn named(catalogue: &Catalogue, uri: &str) -> Result<Skill, ErrorData> {
    let outline = catalogue.skills.iter().find(|outline| outline.uri() == uri);
    outline.ok_or_else(|| ErrorData::invalid_params(format!("no skill `{uri}`"), None))?.entry(catalogue)
}

/// What lies in a folder itself: files, and each folder once.
pub(crate) fn children(catalogue: &Catalogue, uri: &str) -> Result<Vec<Resource>, ErrorData> {
    let folder = format!("{uri}/");
    let mut children = Vec::new();
    for Document { definition, .. } in &catalogue.resources {
        let Some(path) = definition.uri.strip_prefix(&folder) else { continue };
        let child = match path.split_once('/') {
            Some((name, _)) => {
                Resource::new(format!("{folder}{name}"), name).with_mime_type(DIRECTORY_MIME_TYPE)
            }
            None => definition.clone(),
        };
        if !children.contains(&child) {
            children.push(child);
        }
    }
    if children.is_empty() {
        return Err(ErrorData::invalid_params(format!("no folder `{uri}`"), None));
    }
    Ok(children)
}

impl Outline {
    fn uri(&self) -> String {
        format!("{}{SKILL_MD}", self.folder)
    }

    fn entry(&self, catalogue: &Catalogue) -> Result<Skill, ErrorData> {
        let files = catalogue.resources.iter().filter(|file| file.definition.uri.starts_with(&self.folder));
        let files = files.map(|Document { definition, contents }| {
            let ResourceContents::TextResourceContents { text, .. } = contents else {
                return Err(ErrorData::internal_error(format!("`{}` is no text", definition.uri), None));
            };
            Ok(SkillResource::from_bytes(&definition.uri, text.as_bytes()))
        });
        let files = SkillResources::Files(files.collect::<Result<_, _>>()?);
        Ok(Skill::new(self.uri(), self.frontmatter.clone(), files))
    }
}

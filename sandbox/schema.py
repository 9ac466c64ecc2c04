"""The tables of the sandbox's database."""

SCHEMA = """
-- State of the sandbox. JSON columns hold text; times are ISO 8601 in UTC; hashes are base64 of SHA-256.
CREATE TABLE IF NOT EXISTS settings (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS teams (
    id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, description TEXT NOT NULL,
    created_at TEXT NOT NULL, updated_at TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS workspaces (
    id INTEGER PRIMARY KEY AUTOINCREMENT, team_id INTEGER NOT NULL REFERENCES teams ON DELETE CASCADE,
    name TEXT NOT NULL, description TEXT NOT NULL, created_at TEXT NOT NULL, updated_at TEXT NOT NULL,
    UNIQUE (team_id, name));
CREATE TABLE IF NOT EXISTS hidden_workspaces (id INTEGER PRIMARY KEY REFERENCES workspaces ON DELETE CASCADE);
CREATE TABLE IF NOT EXISTS projects (
    id INTEGER PRIMARY KEY AUTOINCREMENT, workspace_id INTEGER NOT NULL REFERENCES workspaces ON DELETE CASCADE,
    name TEXT NOT NULL, description TEXT NOT NULL, readme TEXT, type TEXT NOT NULL,
    meta TEXT NOT NULL, settings TEXT NOT NULL, custom_data TEXT NOT NULL,
    created_at TEXT NOT NULL, updated_at TEXT NOT NULL, UNIQUE (workspace_id, name));
-- Ids of classes and tags, which live inside projects.meta.
CREATE TABLE IF NOT EXISTS meta_ids (id INTEGER PRIMARY KEY AUTOINCREMENT);
CREATE TABLE IF NOT EXISTS datasets (
    id INTEGER PRIMARY KEY AUTOINCREMENT, project_id INTEGER NOT NULL REFERENCES projects ON DELETE CASCADE,
    parent_id INTEGER REFERENCES datasets ON DELETE CASCADE, name TEXT NOT NULL, description TEXT NOT NULL,
    custom_data TEXT NOT NULL, created_at TEXT NOT NULL, updated_at TEXT NOT NULL);
-- COALESCE: SQLite takes two NULL parents for different values.
CREATE UNIQUE INDEX IF NOT EXISTS dataset_names ON datasets (project_id, COALESCE(parent_id, 0), name);
CREATE TABLE IF NOT EXISTS image_blobs (
    hash TEXT PRIMARY KEY, size INTEGER NOT NULL, format TEXT NOT NULL,
    width INTEGER NOT NULL, height INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS images (
    id INTEGER PRIMARY KEY AUTOINCREMENT, dataset_id INTEGER NOT NULL REFERENCES datasets ON DELETE CASCADE,
    name TEXT NOT NULL, hash TEXT NOT NULL REFERENCES image_blobs, meta TEXT NOT NULL, description TEXT NOT NULL,
    parent_id INTEGER, custom_big_data TEXT NOT NULL, created_at TEXT NOT NULL, updated_at TEXT NOT NULL,
    UNIQUE (dataset_id, name));
CREATE TABLE IF NOT EXISTS video_blobs (
    hash TEXT PRIMARY KEY, size INTEGER NOT NULL, codec TEXT NOT NULL, width INTEGER NOT NULL,
    height INTEGER NOT NULL, frames INTEGER NOT NULL, fps REAL NOT NULL);
CREATE TABLE IF NOT EXISTS videos (
    id INTEGER PRIMARY KEY AUTOINCREMENT, dataset_id INTEGER NOT NULL REFERENCES datasets ON DELETE CASCADE,
    name TEXT NOT NULL, hash TEXT NOT NULL REFERENCES video_blobs, meta TEXT NOT NULL, description TEXT NOT NULL,
    created_at TEXT NOT NULL, updated_at TEXT NOT NULL, UNIQUE (dataset_id, name));
-- images.bulk.remove takes ids of images and of videos: they must tell which is meant.
INSERT INTO sqlite_sequence (name, seq)
    SELECT 'videos', 1000000000 WHERE NOT EXISTS (SELECT 1 FROM sqlite_sequence WHERE name='videos');
CREATE TABLE IF NOT EXISTS figures (
    id INTEGER PRIMARY KEY AUTOINCREMENT, image_id INTEGER NOT NULL REFERENCES images ON DELETE CASCADE,
    class_id INTEGER NOT NULL, geometry_type TEXT NOT NULL, geometry TEXT NOT NULL, extra TEXT NOT NULL,
    priority INTEGER NOT NULL, created_at TEXT NOT NULL, updated_at TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS figures_of_image ON figures (image_id, priority, id);
CREATE INDEX IF NOT EXISTS figures_of_class ON figures (class_id);
-- A tag of an image (figure_id is NULL) or of one of its figures.
CREATE TABLE IF NOT EXISTS tags (
    id INTEGER PRIMARY KEY AUTOINCREMENT, image_id INTEGER NOT NULL REFERENCES images ON DELETE CASCADE,
    figure_id INTEGER REFERENCES figures ON DELETE CASCADE, tag_id INTEGER NOT NULL, value TEXT NOT NULL,
    created_at TEXT NOT NULL, updated_at TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS tags_of_image ON tags (image_id);
CREATE INDEX IF NOT EXISTS tags_of_figure ON tags (figure_id);
CREATE TABLE IF NOT EXISTS files (
    id INTEGER PRIMARY KEY AUTOINCREMENT, team_id INTEGER NOT NULL REFERENCES teams ON DELETE CASCADE,
    path TEXT NOT NULL, hash TEXT NOT NULL, size INTEGER NOT NULL, created_at TEXT NOT NULL, updated_at TEXT NOT NULL,
    UNIQUE (team_id, path));
CREATE TABLE IF NOT EXISTS collections (
    id INTEGER PRIMARY KEY AUTOINCREMENT, project_id INTEGER NOT NULL REFERENCES projects ON DELETE CASCADE,
    name TEXT NOT NULL, description TEXT NOT NULL, type TEXT NOT NULL, meta TEXT NOT NULL,
    created_at TEXT NOT NULL, updated_at TEXT NOT NULL, UNIQUE (project_id, name));
CREATE TABLE IF NOT EXISTS collection_items (
    id INTEGER PRIMARY KEY AUTOINCREMENT, collection_id INTEGER NOT NULL REFERENCES collections ON DELETE CASCADE,
    image_id INTEGER NOT NULL REFERENCES images ON DELETE CASCADE, meta TEXT NOT NULL,
    UNIQUE (collection_id, image_id));
CREATE TABLE IF NOT EXISTS versions (
    id INTEGER PRIMARY KEY AUTOINCREMENT, project_id INTEGER NOT NULL REFERENCES projects ON DELETE CASCADE,
    number INTEGER NOT NULL, commit_token TEXT NOT NULL, committed INTEGER NOT NULL, project_updated_at TEXT NOT NULL,
    info TEXT NOT NULL, created_at TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS modules (
    id INTEGER PRIMARY KEY AUTOINCREMENT, slug TEXT NOT NULL UNIQUE, name TEXT NOT NULL, config TEXT NOT NULL,
    address TEXT, created_at TEXT NOT NULL, updated_at TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS models (
    id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL, framework TEXT NOT NULL, content TEXT NOT NULL,
    created_at TEXT NOT NULL, updated_at TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS tasks (
    id INTEGER PRIMARY KEY AUTOINCREMENT, workspace_id INTEGER NOT NULL REFERENCES workspaces ON DELETE CASCADE,
    module_id INTEGER REFERENCES modules ON DELETE SET NULL, name TEXT NOT NULL, description TEXT NOT NULL,
    status TEXT NOT NULL, params TEXT NOT NULL, meta TEXT NOT NULL, output TEXT NOT NULL, fields TEXT NOT NULL,
    content TEXT NOT NULL, session_token TEXT NOT NULL UNIQUE, address TEXT,
    created_at TEXT NOT NULL, updated_at TEXT NOT NULL, finished_at TEXT);
CREATE TABLE IF NOT EXISTS task_logs (
    id INTEGER PRIMARY KEY AUTOINCREMENT, task_id INTEGER NOT NULL REFERENCES tasks ON DELETE CASCADE,
    line TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS workflow (
    id INTEGER PRIMARY KEY AUTOINCREMENT, task_id INTEGER NOT NULL REFERENCES tasks ON DELETE CASCADE,
    direction TEXT NOT NULL, payload TEXT NOT NULL, created_at TEXT NOT NULL);
"""

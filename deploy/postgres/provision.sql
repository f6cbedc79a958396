-- The role and the schema of one service, as pkg/postgres EnsureService makes them.
-- Repeatable; it changes the password of a role that exists. Run it with psql (14
-- or later), as superuser or as a role that may create roles, in Parley's database:
--
--   SERVICE=auth PASSWORD=… psql "$ADMIN_URL" -f deploy/postgres/provision.sql
\set ON_ERROR_STOP on
\getenv service SERVICE
\getenv password PASSWORD
\set role parley_ :service

BEGIN;

SELECT format('CREATE ROLE %I LOGIN NOINHERIT', :'role')
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = :'role') \gexec
ALTER ROLE :"role" LOGIN PASSWORD :'password';
-- Who is no superuser has to be a member to make a schema for the role.
SELECT format('GRANT %I TO CURRENT_USER', :'role')
WHERE NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) \gexec

ALTER ROLE :"role" SET search_path = :"service", extensions;
-- Limits that PgBouncer refuses as startup parameters, so the role carries them.
ALTER ROLE :"role" SET idle_in_transaction_session_timeout = '10s';
ALTER ROLE :"role" SET lock_timeout = '5s';
ALTER ROLE :"role" SET statement_timeout = '30s';
ALTER ROLE :"role" SET timezone = 'UTC';
-- One plan per prepared statement, for all parameters.
ALTER ROLE :"role" SET plan_cache_mode = 'force_generic_plan';
ALTER ROLE :"role" SET enable_seqscan = 'off';
-- Compiling a plan takes longer than any statement of ours.
ALTER ROLE :"role" SET jit = 'off';

CREATE SCHEMA IF NOT EXISTS :"service" AUTHORIZATION :"role";
REVOKE ALL ON SCHEMA :"service" FROM PUBLIC;
REVOKE ALL ON SCHEMA public FROM PUBLIC;
-- Extensions that services use: a database has each once, and roles may not make one.
-- One that stands in another schema already: ALTER EXTENSION pg_trgm SET SCHEMA extensions.
CREATE SCHEMA IF NOT EXISTS extensions;
GRANT USAGE ON SCHEMA extensions TO :"role";
CREATE EXTENSION IF NOT EXISTS pg_trgm SCHEMA extensions;
REVOKE ALL ON DATABASE :"DBNAME" FROM PUBLIC;
GRANT CONNECT ON DATABASE :"DBNAME" TO :"role";

COMMIT;

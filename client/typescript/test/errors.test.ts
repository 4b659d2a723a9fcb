/** Every reason of the contract has its class, and failed calls become these. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { create, toBinary } from "@bufbuild/protobuf";
import { anyPack } from "@bufbuild/protobuf/wkt";
import { status } from "@grpc/grpc-js";

import { Lost } from "../src/connection.js";
import { CLASS_BY_REASON, errorFromStatus } from "../src/errors.js";
import { ErrorInfoSchema } from "../src/generated/google/rpc/error_details_pb.js";
import { StatusSchema } from "../src/generated/google/rpc/status_pb.js";
import { ErrorReason } from "../src/generated/stepwell/v1/errors_pb.js";
import * as stepwell from "../src/index.js";

function statusOf(reason: string, domain = "stepwell"): Uint8Array {
    const info = create(ErrorInfoSchema, { reason, domain, metadata: { run: "mnist" } });
    return toBinary(StatusSchema, create(StatusSchema, { message: "got", details: [anyPack(ErrorInfoSchema, info)] }));
}

test("every reason has a class of its own, which is exported under its name", () => {
    const reasons = Object.keys(ErrorReason).filter((name) => Number.isNaN(Number(name)) && name !== "UNSPECIFIED");
    assert.deepEqual(Object.keys(CLASS_BY_REASON).sort(), reasons.sort());
    assert.equal(new Set(Object.values(CLASS_BY_REASON)).size, reasons.length);
    for (const [reason, errorClass] of Object.entries(CLASS_BY_REASON)) {
        const error = new errorClass("message", { a: "b" });
        assert.ok(error instanceof stepwell.StepwellError && error instanceof Error);
        assert.equal(error.reason, reason);
        assert.equal(stepwell[error.name as "Internal"], errorClass);
        assert.equal(String(error), `${error.name}: message`);
    }
});

test("a failed call's status carries its typed error", () => {
    const error = errorFromStatus(statusOf("UNKNOWN_RUN"), "plain");
    assert.ok(error instanceof stepwell.UnknownRun);
    assert.deepEqual([error.message, error.details], ["got", { run: "mnist" }]);
    assert.ok(errorFromStatus(statusOf("ERROR_REASON_UNKNOWN_RUN"), "") instanceof stepwell.UnknownRun);
    const newer = errorFromStatus(statusOf("OF_THE_FUTURE"), "");
    assert.deepEqual([newer?.constructor, newer?.reason], [stepwell.StepwellError, "OF_THE_FUTURE"]);
    assert.equal(errorFromStatus(statusOf("UNKNOWN_RUN", "example.com"), ""), undefined);
    assert.equal(errorFromStatus(Uint8Array.of(255, 255, 255), ""), undefined);
});

test("of a call that was lost it is known whether another try may help, and whether anything was done", () => {
    const refused = new Lost(status.UNAVAILABLE, "No connection established. Last error: connect ECONNREFUSED");
    assert.ok(refused.passing && refused.neverExecuted);
    assert.ok(refused.asError() instanceof stepwell.ServerUnavailable);
    const cut = new Lost(status.INTERNAL, "Received RST_STREAM with code 2");
    assert.ok(cut.passing && !cut.neverExecuted);
    assert.ok(!new Lost(status.INTERNAL, "a fault").passing);
    assert.ok(new Lost(status.INTERNAL, "a fault").asError() instanceof stepwell.Internal);
    assert.ok(new Lost(status.DEADLINE_EXCEEDED, "").asError() instanceof stepwell.TimedOut);
    const stopping = new Lost(status.UNAVAILABLE, "", new stepwell.ServerStopping("stops"));
    assert.ok(stopping.passing && stopping.neverExecuted);
    const typed = new Lost(status.NOT_FOUND, "", new stepwell.UnknownRun("none"));
    assert.ok(!typed.passing && !typed.neverExecuted);
    assert.ok(typed.asError() instanceof stepwell.UnknownRun);
});

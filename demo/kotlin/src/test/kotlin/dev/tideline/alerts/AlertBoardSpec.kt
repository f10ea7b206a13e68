/*
 * Copyright 2026 The Tideline authors.
 * SPDX-License-Identifier: Apache-2.0
 */

package dev.tideline.alerts

import dev.tideline.core.Events
import dev.tideline.core.Moment
import dev.tideline.core.Reason
import dev.tideline.core.Span
import dev.tideline.core.Spec
import dev.tideline.core.StillClock
import dev.tideline.core.into

/** Describes how alerts are counted, answered and escalated. */
class AlertBoardSpec : Spec({
    val pump = AlertId("pump/pressure")

    case("a repeated alert is counted and not raised again") {
        val events = given("an empty event log") { Events() }
        val board = AlertBoard(
            alerts = InMemoryAlertStore(),
            events = events,
            clock = StillClock(Moment.of(day = 2, hour = 1)),
        )
        board.raise(pump, Severity.NOTICE, "pressure is low")
        expect(board.raise(pump, Severity.NOTICE, "pressure is low").into { it.repeats }).toGive(1)
        expect(events.countOf<AlertRaised>()).toBe(1)
    }

    case("an unanswered warning becomes an alarm after an hour") {
        val clock = given("a clock in the middle of the night") { StillClock(Moment.of(day = 2, hour = 1)) }
        val board = AlertBoard(alerts = InMemoryAlertStore(), events = Events(), clock = clock)
        board.raise(pump, Severity.WARNING, "pressure falls")
        clock.advance(Span.ofMinutes(59))
        expect(board.escalate()).toBe(emptyList())
        clock.advance(Span.ofMinutes(1))
        expect(board.escalate().map { it.severity }).toBe(listOf(Severity.ALARM))
    }

    case("only the first answer counts") {
        val board = given("a board with one alarm") {
            AlertBoard(
                alerts = InMemoryAlertStore(),
                events = Events(),
                clock = StillClock(Moment.of(day = 4, hour = 16)),
            )
        }
        board.raise(pump, Severity.ALARM, "pump is on fire")
        expect(board.answer(pump, "Marta")).toBeDone()
        expect(board.answer(pump, "Olaf")).toBeRefusedFor(Reason.CONFLICT)
        expect(board.answer(AlertId("door/open"), "Olaf")).toBeRefusedFor(Reason.NOT_FOUND)
    }
})

/*
 * Copyright 2026 The Tideline authors.
 * SPDX-License-Identifier: Apache-2.0
 */

package dev.tideline.ferries

import dev.tideline.core.Moment
import dev.tideline.core.Outcome
import dev.tideline.core.Reason
import dev.tideline.core.Span
import dev.tideline.core.TideClock
import dev.tideline.core.Window
import dev.tideline.core.gather
import dev.tideline.core.into
import dev.tideline.core.ledger
import dev.tideline.core.onDone
import dev.tideline.core.onRefused
import dev.tideline.core.requireFound
import dev.tideline.core.requireThat
import dev.tideline.core.then

/** Identifies a ferry line. */
@JvmInline
value class LineId(val raw: String) {
    override fun toString(): String = raw
}

/** Describes one daily crossing by the minute of the day at which it leaves. */
data class Crossing(val line: LineId, val leavesAt: Span, val takes: Span)

/** Reads timetables such as `ISLE 06:30 09:00 11:30 / 0:45` and answers travellers. */
class FerryTimetable(private val clock: TideClock) {
    private val log = ledger<FerryTimetable>()
    private val crossings = mutableListOf<Crossing>()

    /** Reads one line of text and adds its crossings, or refuses it as a whole. */
    fun read(text: String): Outcome<List<Crossing>> {
        val (left, right) = text.split('/').map { it.trim() } + listOf("", "")
        val words = left.split(' ').filter { it.isNotEmpty() }
        return requireThat(words.size >= 2, Reason.INVALID) { "timetable '$text' names no crossing" }
            .then { parseTime(right) }
            .then { takes ->
                words.drop(1).map { word ->
                    parseTime(word).into {
                        Crossing(line = LineId(words.first()), leavesAt = it, takes = takes)
                    }
                }.gather()
            }
            .onDone {
                crossings += it
                log.note("timetable.read", "line" to words.first(), "crossings" to it.size)
            }
            .onRefused { log.warn("timetable.refused", "text" to text, "message" to it.message) }
    }

    /** Finds the window of the next crossing, which may be the first one of tomorrow. */
    fun findNext(line: LineId): Outcome<Window> {
        val today = clock.now() - Span(clock.now().minuteOfDay)
        val next = crossings.filter { it.line == line }
            .flatMap { crossing -> listOf(today, today + Span.ofDays(1)).map { windowOf(crossing, it) } }
            .filter { it.from >= clock.now() }
            .minByOrNull { it.from }
        return requireFound(next) { "line $line does not sail" }
    }

    private fun windowOf(crossing: Crossing, midnight: Moment): Window {
        val from = midnight + crossing.leavesAt
        return Window(from, from + crossing.takes)
    }

    private fun parseTime(word: String): Outcome<Span> {
        val numbers = word.split(':').map { it.toIntOrNull() ?: -1 }
        val legal = numbers.size == 2 && numbers.first() in 0..23 && numbers.last() in 0..59
        return requireThat(legal, Reason.INVALID) { "'$word' is no time" }
            .into { Span.ofHours(numbers.first()) + Span.ofMinutes(numbers.last()) }
    }
}

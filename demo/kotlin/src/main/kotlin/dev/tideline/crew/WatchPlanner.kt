/*
 * Copyright 2026 The Tideline authors.
 * SPDX-License-Identifier: Apache-2.0
 */

package dev.tideline.crew

import dev.tideline.core.Events
import dev.tideline.core.InMemoryStore
import dev.tideline.core.Moment
import dev.tideline.core.Outcome
import dev.tideline.core.Reason
import dev.tideline.core.Span
import dev.tideline.core.Store
import dev.tideline.core.TideClock
import dev.tideline.core.TideEvent
import dev.tideline.core.Window
import dev.tideline.core.done
import dev.tideline.core.into
import dev.tideline.core.ledger
import dev.tideline.core.onDone
import dev.tideline.core.onRefused
import dev.tideline.core.refuse
import dev.tideline.core.requireThat
import dev.tideline.core.then

/** Identifies a member of the crew of a harbour craft. */
@JvmInline
value class CrewId(val raw: String) {
    override fun toString(): String = raw
}

/** Names the trades that a watch needs. */
enum class Trade { SKIPPER, ENGINEER, DECKHAND }

/** Describes a member of the crew. */
data class CrewMember(val id: CrewId, val name: String, val trades: Set<Trade>)

/** Says how many of each trade a craft needs on watch. */
data class Manning(val needs: Map<Trade, Int>)

/** Puts people on watch for a window. */
data class Watch(val window: Window, val crew: Map<CrewId, Trade>)

/** Tells that a watch was filled. */
data class WatchFilled(
    val window: Window,
    val crew: Set<CrewId>,
    override val at: Moment,
) : TideEvent

/** Keeps the crew of all harbour craft. */
interface CrewStore : Store<CrewId, CrewMember> {
    /** Lists the people of a trade. */
    fun listOf(trade: Trade): List<CrewMember>
}

/** Keeps the crew in memory. */
class InMemoryCrewStore : InMemoryStore<CrewId, CrewMember>("crew member", CrewMember::id), CrewStore {
    override fun listOf(trade: Trade): List<CrewMember> = listWhere { trade in it.trades }
}

/** Fills watches without keeping anybody from the rest that the law demands. */
class WatchPlanner(
    private val crew: CrewStore,
    private val events: Events,
    private val clock: TideClock,
    private val longestDay: Span = Span.ofHours(14),
) {
    private val log = ledger<WatchPlanner>()
    private val watches = mutableListOf<Watch>()

    /** Fills a watch trade by trade, the rarest trade first. */
    fun fill(window: Window, manning: Manning): Outcome<Watch> =
        requireThat(window.length <= Span.ofHours(12), Reason.INVALID) { "a watch of $window is too long" }
            .then { choose(window, manning) }
            .into { chosen -> Watch(window, chosen) }
            .onDone { watch ->
                watches += watch
                log.note("watch.filled", "window" to window, "crew" to watch.crew.size)
                events.publish(WatchFilled(window = window, crew = watch.crew.keys, at = clock.now()))
            }
            .onRefused { log.warn("watch.refused", "window" to window, "message" to it.message) }

    /** Counts the work of a person within any window. */
    fun countWork(id: CrewId, within: Window): Span =
        listWatchesOf(id).fold(Span.ZERO) { sum, watch ->
            val from = maxOf(watch.window.from, within.from)
            val until = minOf(watch.window.until, within.until)
            if (from < until) sum + (until - from) else sum
        }

    /** Lists the watches of a person, earliest first. */
    fun listWatchesOf(id: CrewId): List<Watch> = watches.filter { id in it.crew }.sortedBy { it.window.from }

    private fun choose(window: Window, manning: Manning): Outcome<Map<CrewId, Trade>> {
        val chosen = mutableMapOf<CrewId, Trade>()
        for ((trade, need) in manning.needs.entries.sortedBy { crew.listOf(it.key).size }) {
            val free = crew.listOf(trade)
                .filter { it.id !in chosen && mayWork(it.id, window) }
                .sortedBy { it.trades.size }
            if (free.size < need) {
                return refuse(Reason.FULL) { "only ${free.size} of $need for $trade are rested" }
            }
            free.take(need).forEach { chosen[it.id] = trade }
        }
        return done(chosen)
    }

    private fun mayWork(id: CrewId, window: Window): Boolean {
        val busy = listWatchesOf(id).any { it.window.overlaps(window) }
        val dayBefore = Window(window.until - Span.ofDays(1), window.until)
        val dayAfter = Window(window.from, window.from + Span.ofDays(1))
        val work = maxOf(countWork(id, dayBefore), countWork(id, dayAfter))
        return !busy && work + window.length <= longestDay
    }
}

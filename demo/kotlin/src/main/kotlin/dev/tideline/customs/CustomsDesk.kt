/*
 * Copyright 2026 The Tideline authors.
 * SPDX-License-Identifier: Apache-2.0
 */

package dev.tideline.customs

import dev.tideline.containers.ContainerId
import dev.tideline.core.Events
import dev.tideline.core.InMemoryStore
import dev.tideline.core.Moment
import dev.tideline.core.Money
import dev.tideline.core.Outcome
import dev.tideline.core.Reason
import dev.tideline.core.Store
import dev.tideline.core.TideClock
import dev.tideline.core.TideEvent
import dev.tideline.core.change
import dev.tideline.core.into
import dev.tideline.core.ledger
import dev.tideline.core.onDone
import dev.tideline.core.requireThat
import dev.tideline.core.then

/** Identifies a customs declaration. */
@JvmInline
value class DeclarationId(val raw: String) {
    override fun toString(): String = raw
}

/** Names the steps that a declaration goes through. */
enum class DeclarationState { LODGED, HELD, CLEARED }

/** Describes goods that enter the country through the harbour. */
data class Declaration(
    val id: DeclarationId,
    val container: ContainerId,
    val goods: String,
    val origin: String,
    val value: Money,
    val state: DeclarationState = DeclarationState.LODGED,
)

/** Tells that a declaration was cleared and what duty is owed for it. */
data class DeclarationCleared(
    val declaration: DeclarationId,
    val duty: Money,
    override val at: Moment,
) : TideEvent

/** Tells that the goods of a declaration were held for inspection. */
data class DeclarationHeld(
    val declaration: DeclarationId,
    val score: Int,
    override val at: Moment,
) : TideEvent

/** Keeps the declarations. */
interface DeclarationStore : Store<DeclarationId, Declaration> {
    /** Counts the declarations in a state. */
    fun countIn(state: DeclarationState): Int
}

/** Keeps the declarations in memory. */
class InMemoryDeclarationStore :
    InMemoryStore<DeclarationId, Declaration>("declaration", Declaration::id),
    DeclarationStore {
    override fun countIn(state: DeclarationState): Int = countWhere { it.state == state }
}

/** Adds to the risk of a declaration when its test is met. */
data class RiskRule(val name: String, val points: Int, val test: (Declaration) -> Boolean)

/** Clears goods, or holds the ones that look risky. */
class CustomsDesk(
    private val declarations: DeclarationStore,
    private val rules: List<RiskRule>,
    private val events: Events,
    private val clock: TideClock,
    private val dutyRate: Double = 0.08,
    private val holdFrom: Int = 50,
) {
    private val log = ledger<CustomsDesk>()

    /** Lodges a declaration and either clears or holds it at once. */
    fun lodge(declaration: Declaration): Outcome<Declaration> =
        requireThat(declaration.value > Money.ZERO, Reason.INVALID) { "${declaration.goods} are worthless" }
            .then { declarations.add(declaration) }
            .then { added ->
                val score = scoreOf(added)
                if (score >= holdFrom) hold(added, score) else clear(added)
            }

    /** Releases held goods after an inspection that found nothing. */
    fun release(id: DeclarationId): Outcome<Declaration> =
        findHeld(id).then { clear(it) }

    /** Adds up the points of every rule that the declaration meets. */
    fun scoreOf(declaration: Declaration): Int = rules.filter { it.test(declaration) }.sumOf { it.points }

    private fun findHeld(id: DeclarationId): Outcome<Declaration> =
        declarations.findById(id).then { declaration ->
            requireThat(declaration.state == DeclarationState.HELD, Reason.CONFLICT) {
                "declaration $id is ${declaration.state} and not held"
            }.into { declaration }
        }

    private fun clear(declaration: Declaration): Outcome<Declaration> =
        move(declaration, DeclarationState.CLEARED).onDone {
            val duty = it.value * dutyRate
            log.note("declaration.cleared", "declaration" to it.id, "duty" to duty)
            events.publish(DeclarationCleared(declaration = it.id, duty = duty, at = clock.now()))
        }

    private fun hold(declaration: Declaration, score: Int): Outcome<Declaration> =
        move(declaration, DeclarationState.HELD).onDone {
            log.note("declaration.held", "declaration" to it.id, "score" to score)
            events.publish(DeclarationHeld(declaration = it.id, score = score, at = clock.now()))
        }

    private fun move(declaration: Declaration, state: DeclarationState): Outcome<Declaration> =
        declarations.change(declaration.id) { it.copy(state = state) }
}
